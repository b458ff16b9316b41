"""Every default value of the project: one frozen dataclass per stage, checked when it is made.

A preset in ``configs/*.py`` returns one of these from ``get_config()``; ``rlhf_jax.cli`` parses the
command line over it. Fields are documented by the string below them, which is also their help text.
"""

from rlhf_jax.config.average import AverageConfig
from rlhf_jax.config.chain import InstructGPTConfig
from rlhf_jax.config.convert import ConvertConfig, ImportConfig
from rlhf_jax.config.data import TextDataConfig, TokenizerConfig
from rlhf_jax.config.feedback import (
    AnswersConfig,
    FeedbackAnswerConfig,
    FeedbackAskConfig,
    FeedbackConfig,
    FeedbackExportConfig,
    FeedbackImportConfig,
    FeedbackSampleConfig,
    FeedbackServeConfig,
    FeedbackSimulateConfig,
    FeedbackUpdateConfig,
    FeedbackVerdictConfig,
    ProgramsConfig,
    ScoresConfig,
)
from rlhf_jax.config.model import LoRAConfig, ModelConfig, RotaryConfig
from rlhf_jax.config.penalties import KLConfig, SecondRewardConfig
from rlhf_jax.config.plan import PlanConfig
from rlhf_jax.config.ppo import PPOConfig
from rlhf_jax.config.preferences import PairLossConfig
from rlhf_jax.config.privacy import CanaryConfig, CleanConfig, PrivacyConfig
from rlhf_jax.config.rewards import CombineConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.site import AddressConfig, ScrubConfig, ServeConfig
from rlhf_jax.config.stages import (
    CompareConfig,
    DPOConfig,
    LabelerConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from rlhf_jax.config.study import ClusterConfig, StudyConfig
from rlhf_jax.config.tools import (
    AuditConfig,
    EvaluateConfig,
    HarnessConfig,
    PreviewConfig,
    ReportConfig,
    SampleConfig,
    TaskConfig,
)
from rlhf_jax.config.training import OptimConfig, ParallelConfig, RunConfig

__all__ = [
    "AddressConfig",
    "AnswersConfig",
    "AuditConfig",
    "AverageConfig",
    "CanaryConfig",
    "CleanConfig",
    "ClusterConfig",
    "CombineConfig",
    "CompareConfig",
    "ConvertConfig",
    "DPOConfig",
    "EvaluateConfig",
    "FeedbackAnswerConfig",
    "FeedbackAskConfig",
    "FeedbackConfig",
    "FeedbackExportConfig",
    "FeedbackImportConfig",
    "FeedbackSampleConfig",
    "FeedbackServeConfig",
    "FeedbackSimulateConfig",
    "FeedbackUpdateConfig",
    "FeedbackVerdictConfig",
    "HarnessConfig",
    "ImportConfig",
    "InstructGPTConfig",
    "KLConfig",
    "LabelerConfig",
    "LoRAConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "PairLossConfig",
    "ParallelConfig",
    "PlanConfig",
    "PretrainConfig",
    "PreviewConfig",
    "PrivacyConfig",
    "ProgramsConfig",
    "ReportConfig",
    "RewardConfig",
    "RotaryConfig",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "SamplingConfig",
    "ScoresConfig",
    "ScrubConfig",
    "SecondRewardConfig",
    "ServeConfig",
    "StudyConfig",
    "TaskConfig",
    "TextDataConfig",
    "TokenizerConfig",
]
