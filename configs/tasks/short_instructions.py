"""Short instructions, for a language model that is there already: configs/smollm_instructions.py.

Command:  python -m experiments.instructgpt --task short_instructions
"""

from configs.smollm_instructions import get_config

__all__ = ["get_config"]
