"""The loss of ranked answers: DPO and its kin, of a file's rankings or of answers just sampled."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_jax.config.bounds import Bounds, Positive, PositiveOrZero, check_bounds
from rlhf_jax.config.effect import Main
from rlhf_jax.errors import check


@dataclass(frozen=True)
class PairLossConfig:
    """DPO's loss of a pair of answers, its kin, and their coefficients."""

    loss: Main[Literal["sigmoid", "ipo", "hinge", "robust"]] = "sigmoid"
    """Of a pair: sigmoid is DPO's (Rafailov et al. 2023); ipo takes the margin to a number (Azar et
    al. 2023), hinge to 1 at least (SLiC); robust is unbiased by wrong labels (``label_smoothing``).
    """
    beta: Main[Positive] = 0.1
    """β: how dearly leaving the reference is paid for. Of ipo it is τ: log-ratios are to differ by
    1/(2β) nats."""
    label_smoothing: Annotated[float, Bounds(0, 0.5, below=True)] = 0.0
    """ε: share of labels taken to be wrong. With sigmoid that is conservative DPO (Mitchell 2023),
    with robust rDPO (Chowdhury et al. 2024)."""
    per_token: bool = False
    """Log-ratios are means over a response's tokens, as TRL's IPO has them, and not sums, as the
    papers. Differences are then about as many times smaller as a response has tokens: β grows."""
    sft_coef: Main[PositiveOrZero] = 0.0
    """α: weight of the best response's −log π per token, in nats, which keeps it likely (RPO: Pang
    et al. 2024 take 1, Llama 3 0.2); 0: none."""

    def __post_init__(self):
        check_bounds(self, self.prefix)
        name = f"{self.prefix}label_smoothing"
        check(
            not self.label_smoothing or self.loss in ("sigmoid", "robust"),
            f"{name}={self.label_smoothing} with {self.prefix}loss={self.loss}: expected loss "
            "sigmoid (conservative DPO) or robust, or label_smoothing 0",
        )
        check(
            self.loss != "robust" or self.label_smoothing > 0,
            f"{self.prefix}loss=robust needs {name} over 0, the share of labels that is wrong: "
            "with 0 it is loss sigmoid",
        )

    @property
    def prefix(self) -> str:
        """What stands before these fields on the command line."""
        return "dpo."
