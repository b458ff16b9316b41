"""Film reviews in a warmer tone, by a language model that is there already: configs/smollm.py.

Command:  python -m experiments.instructgpt --task tone
"""

from configs.smollm import get_config

__all__ = ["get_config"]
