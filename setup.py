"""Everything about installing rlhf_jax; pyproject.toml only configures tools.

Requirements are lower bounds. The exact versions that the results were made with are in
constraints.txt: ``pip install -c constraints.txt -e ".[report,tensorboard]"``.
"""

from setuptools import find_packages, setup

CORE = [
    # flax 0.12.8, the last for Python 3.11, breaks on jax >= 0.11.1, which only 3.12 can install;
    # flax 0.12.12 requires that jax. Without the two markers pip may join the wrong pair.
    'flax>=0.12.7; python_version < "3.12"',
    'flax>=0.12.12; python_version >= "3.12"',
    "jax>=0.10,!=0.11.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.16",
    "tensorflow-datasets>=4.9.10",
    # Data sets and models by name: tokenizers brings it.
    "huggingface_hub>=0.30",
    # Parquet, Arrow, zstd: tensorflow-datasets brings it, so that it is no extra.
    "pyarrow>=16",
    # Imported by tensorflow-datasets, which does not declare it.
    "importlib_resources>=6.4",
    "numpy>=2.0",
    "scipy>=1.14",
    "ml_dtypes>=0.5",
    "safetensors>=0.5",
    "tokenizers>=0.22",
    "jaxtyping>=0.3",
    "tyro>=1.0",
    "jinja2>=3.1",
    "rich>=13.7",
    "tqdm>=4.66",
]
REPORT = ["matplotlib>=3.9"]
TENSORBOARD = ["tensorboardX>=2.6"]
FEEDBACK = ["starlette>=1.0", "uvicorn>=0.35", "python-multipart>=0.0.20", "markdown-it-py>=3.0"]
# The label store on PostgreSQL, for a team larger than one machine.
TEAM = [*FEEDBACK, "sqlalchemy>=2.0", "psycopg[binary]>=3.2"]
EVAL = ["rouge-score>=0.1.2", "sacrebleu>=2.5"]
PRIVACY = ["dp-accounting>=0.6"]
GGUF = ["gguf>=0.17"]
SLURM = ["submitit>=1.5"]
TEST = [
    *REPORT,
    *TENSORBOARD,
    *EVAL,
    *PRIVACY,
    *GGUF,
    *SLURM,
    "absl-py>=2.1",
    "beartype>=0.20",
    "chex>=0.1.90",
    "pytest>=8.3",
    "pytest-xdist>=3.7",
    # Its own files are read without it, and compared with it.
    "sentencepiece>=0.2.1",
]
# The labelling page's tests drive Chromium, which is not in here.
TEST_FEEDBACK = [*TEAM, "axe-playwright-python>=0.1.4", "httpx2>=2.0", "playwright>=1.50"]
LM_EVAL = ["lm-eval>=0.4.12"]
DOCS = ["sphinx>=8.2", "myst-parser>=5.0", "furo>=2025.9", "sphinx-copybutton>=0.5"]
# What runs docs/notebooks from top to bottom.
NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10"]
# What tests/parity compares with; in an environment of its own, with constraints-torch.txt.
# TRL 1.12.0 is the last with a PPO.
TORCH = [
    *TEST,
    *LM_EVAL,
    "torch>=2.13",
    "transformers>=5.23",
    "trl==1.12.0",
    "peft>=0.19",
]

setup(
    name="rlhf_jax",
    version="0.1.0",
    description="InstructGPT whole in JAX/Flax: pretraining, SFT, K-wise reward model, PPO-ptx, "
    "evaluation",
    author="The rlhf_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The library. Experiments, presets and benchmarks are run and forked from a clone, and would
    # be top-level names in site-packages that other projects have too.
    packages=find_packages(include=["rlhf_jax*"]),
    package_data={
        "rlhf_jax": ["py.typed"],  # its annotations are for others' type checkers, too
        "rlhf_jax.evaluation": ["*.jinja"],
        "rlhf_jax.feedback.web": ["templates/*.html", "static/*", "locales/*.json", "guides/*.md"],
    },
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.19"],
        "trackio": ["trackio>=0.20"],
        "report": REPORT,
        "docs": DOCS,
        "feedback": FEEDBACK,
        "team": TEAM,
        "eval": EVAL,
        "privacy": PRIVACY,
        "gguf": GGUF,
        "slurm": SLURM,
        "lm-eval": LM_EVAL,
        "test": [*TEST, *TEST_FEEDBACK, *DOCS, *NOTEBOOKS],
        "torch": TORCH,
        "dev": [*TEST, *TEST_FEEDBACK, *DOCS, *NOTEBOOKS, "ruff>=0.12", "ty>=0.0.108"],
    },
)
