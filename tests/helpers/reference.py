"""Slow float64 loops, written from the papers and not from the code, to hold the code against."""

import itertools
import math

import numpy as np


def gae(rewards, values, mask, gamma, lam):
    """Σₗ (γλ)ˡ δₜ₊ₗ by its definition, over each row's real tokens."""
    advantages = np.zeros(rewards.shape)
    for b in range(rewards.shape[0]):
        at = np.flatnonzero(mask[b])
        v = [*values[b, at], 0.0]
        deltas = [rewards[b, i] + gamma * v[n + 1] - v[n] for n, i in enumerate(at)]
        for n, i in enumerate(at):
            advantages[b, i] = sum((gamma * lam) ** k * d for k, d in enumerate(deltas[n:]))
    return advantages, np.where(mask, advantages + values, 0.0)


def whiten(x, mask, shift_mean):
    real = x[mask]
    out = np.zeros(x.shape)
    out[mask] = (real - real.mean()) / math.sqrt(real.var() + 1e-8) + (
        0 if shift_mean else real.mean()
    )
    return out


def logprobs(logits, tokens):
    out = np.zeros(tokens.shape)
    for i in np.ndindex(tokens.shape):
        z = logits[i]
        out[i] = z[tokens[i]] - z.max() - math.log(sum(math.exp(v - z.max()) for v in z))
    return out


def kl_rewards(scores, logp, ref, mask, kl_coef):
    out = np.zeros(logp.shape)
    for b in range(len(scores)):
        at = np.flatnonzero(mask[b])
        out[b, at] = -kl_coef * (logp[b, at] - ref[b, at])
        if len(at):
            out[b, at[-1]] += scores[b]
    return out


def ppo(new_logp, logp, adv, new_v, v, ret, mask, eps, eps_v):
    policy, value, clipped = [], [], []
    for i in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(new_logp[i] - logp[i])
        plain, cut = -adv[i] * ratio, -adv[i] * min(max(ratio, 1 - eps), 1 + eps)
        policy.append(max(plain, cut))
        clipped.append(cut > plain)
        near = min(max(new_v[i], v[i] - eps_v), v[i] + eps_v)
        value.append(0.5 * max((new_v[i] - ret[i]) ** 2, (near - ret[i]) ** 2))
    return np.mean(policy), np.mean(value), np.mean(clipped)


def ranking(scores, ranks):
    """Mean over prompts of the mean over its untied pairs of log(1 + exp(−margin))."""
    per_prompt = []
    for s, r in zip(scores, ranks, strict=True):
        losses = [
            math.log1p(math.exp(-(s[i] - s[j])))
            for i, j in itertools.permutations(range(len(s)), 2)
            if 0 <= r[i] < r[j]
        ]
        if losses:
            per_prompt.append(np.mean(losses))
    return np.mean(per_prompt)


def pair(h, loss, beta, epsilon):
    """The loss of one pair whose log-ratios differ by h, and its derivative by h."""
    wrong = 1 / (1 + math.exp(beta * h))  # σ(−β h)
    right = 1 - wrong
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta))
    if loss == "hinge":
        return (1 - beta * h, -beta) if beta * h < 1 else (0.0, 0.0)
    sign = -1 if loss == "robust" else 1
    total = -(1 - epsilon) * math.log(right) - sign * epsilon * math.log(wrong)
    slope = beta * (-(1 - epsilon) * wrong + sign * epsilon * right)
    scale = 1 / (1 - 2 * epsilon) if loss == "robust" else 1
    return scale * total, scale * slope


def dpo(logp, ref, ranks, lengths, *, loss, beta, epsilon=0.0, per_token=False, sft=0.0):
    """Mean over prompts of the mean over their untied pairs, and the gradient by ``logp``."""
    totals, gradients = [], []
    for p, q, r, n in zip(logp, ref, ranks, lengths, strict=True):
        K, total, gradient = len(p), 0.0, np.zeros(len(p))
        pairs = [(i, j) for i in range(K) for j in range(K) if 0 <= r[i] < r[j]]
        gradients.append(gradient)
        if not pairs:
            continue
        units = [n[k] if per_token else 1 for k in range(K)]
        for i, j in pairs:
            h = (float(p[i]) - float(q[i])) / units[i] - (float(p[j]) - float(q[j])) / units[j]
            value, slope = pair(h, loss, beta, epsilon)
            total += value / len(pairs)
            gradient[i] += slope / units[i] / len(pairs)
            gradient[j] -= slope / units[j] / len(pairs)
        best = [k for k in range(K) if r[k] == min(x for x in r if x >= 0)]
        for k in best:
            total -= sft * p[k] / n[k] / len(best)
            gradient[k] -= sft / n[k] / len(best)
        totals.append(total)
    return np.mean(totals), np.stack(gradients) / len(totals)


def slerp(start, first, second, share):
    """θ_init + sin((1−λ)Ω)/sin Ω · δ₁ + sin(λΩ)/sin Ω · δ₂ (Ramé et al. 2024, arXiv 2406.16768)."""
    d1, d2 = ((x - start).ravel() for x in (first, second))
    dot = sum(x * y for x, y in zip(d1, d2, strict=True))
    norms = [math.sqrt(sum(x * x for x in d)) for d in (d1, d2)]
    omega = math.acos(dot / (norms[0] * norms[1]))
    a, b = (math.sin(s * omega) / math.sin(omega) for s in (1 - share, share))
    mixed = [x + a * p + b * q for x, p, q in zip(start.ravel(), d1, d2, strict=True)]
    return np.array(mixed).reshape(start.shape)
