"""The names under which facts lie in the Optuna store: written by search, read by results. The one place for both.

User attributes are short and few, since optuna-dashboard shows them; longer records are system attributes.
"""

from __future__ import annotations

from typing import Literal, get_args

# User attributes of a trial.
FINGERPRINT = "fingerprint"
"""TrialConfig.fingerprint(): the configuration whatever its seeds."""
REPLICATE = "replicate"
"""0 for the first trial of a configuration, 1 for its second seed, …"""
SEED = "seed"
TOTAL_PARAMS = "total_params"
ACTIVE_PARAMS = "active_params"
FLOPS_PER_TOKEN = "flops_per_token"  # noqa: S105 - tokens of text
"""Forward FLOPs per token."""
VOCAB_SIZE = "vocab_size"
CONTEXT_TOKENS = "context_tokens"
"""Context of the trial, which ``data.context_bytes`` may have made."""
BYTES_PER_TOKEN = "bytes_per_token"  # noqa: S105 - tokens of text
"""UTF-8 bytes per token of the training split, a mean."""
PEAK_MEMORY_BYTES = "peak_memory_bytes"
"""Largest memory of the worker until the trial ended: the device's on CUDA, else the process'."""
TRAIN_SECONDS = "train_seconds"
EVAL_SECONDS = "eval_seconds"
OUTCOME = "outcome"
REASON = "reason"
MLFLOW_RUN_ID = "mlflow_run_id"
WORKER = "worker"

Failure = Literal["infeasible", "diverged", "collapsed", "out_of_memory", "timed_out", "error", "lost"]
"""How a trial ends that does not count; docs/reliability.md says which are tried again, and what follows.

``infeasible``: breaks a rule, never trained. ``diverged``: a loss or gradient was not finite. ``collapsed``: its router
sent nearly all tokens to few experts. ``out_of_memory``: did not fit, or would not. ``timed_out``: took longer than
``run.max_trial_seconds``. ``error``: raised alone. ``lost``: its workers died time and again.
"""
FAILURES: tuple[Failure, ...] = get_args(Failure)
Outcome = Literal["complete", "pruned", "violated"] | Failure
"""``violated``: trained, and stopped or ended with a violated constraint of the study file."""
FINISHED_OUTCOMES: tuple[Outcome, ...] = ("complete", "pruned", "violated")
"""The outcomes that count against num_trials."""

# Parameters of a confirmation trial, beside the knobs.
CONTROL = "control"
"""``dense`` for the dense control, which has no knobs."""
RATE_PARAM = "optim.lr"
"""The learning rate, where the confirmation has searched it."""

# System attributes of a trial.
CONFIG = "moesearch:config"
"""Resolved TrialConfig as JSON values."""
MILESTONE_PREFIX = "moesearch:milestone:"
"""+ four digits of the milestone: the EvalPoint as JSON values."""
FAMILY = "moesearch:family"
"""Values of the shape knobs that a proposal was asked to have, so that it can train beside others."""
STOPPED_AT = "moesearch:stopped_at"
"""The rung, as a milestone, at which successive halving stopped the trial last. While that is its last milestone and it
is WAITING, it may be promoted yet (see ``results.standing``)."""
STOPPED_TIME = "moesearch:stopped_time"
"""When that was, in unix seconds."""
RATE = "moesearch:rate"
"""Of a run before the confirmation, that tries a learning rate: ``finalist``, the fingerprint of the configuration as
it was searched, and ``doublings`` of its learning rate, negative for halvings."""
COST = "moesearch:cost"
"""FLOPs of the trial if it is trained to its end, evaluations included."""
LOST_MILESTONES = "moesearch:lost_milestones"
"""Milestones that were trained in vain, at most, since workers died on the trial."""
DEATHS = "moesearch:deaths"
"""``milestone``, ``count`` and ``memory``: how many workers died on this trial since that milestone, and how many of
them for memory."""
ATTEMPT = "moesearch:attempt"
"""``began`` (unix seconds) and ``oom_kills``: when its present worker took the trial up, and how many processes the
kernel of that host had killed for memory by then."""

# System attributes of a study.
STUDY_CONFIG = "moesearch:study"
"""Resolved StudyConfig as JSON values."""
SESSION_PREFIX = "moesearch:session:"
"""+ unique id: one run of the command: started, ended (unix seconds), workers, device, host, process, versions,
command."""
LEASE_PREFIX = "moesearch:lease:"
"""+ name of a worker: [start, end] of its work in unix seconds; until the worker leaves, the end lies ahead."""
SEARCH_END = "moesearch:end"
"""Why the search ended before its number of trials, as a sentence; empty where it did not."""
TRANSFERRED = "moesearch:transferred"
"""Results of other studies that the sampler knows beside those of this one."""
CORPUS_FACTS = "moesearch:corpus"
"""Name, sha256, characters, distinct ones, and bytes of each split, which lie one after the other in the text."""
VERDICT = "moesearch:verdict"
"""results.verdict.Verdict as JSON values, once confirmation is done."""
VERDICT_MAKER = "moesearch:verdict_maker"
"""Host of the command that decides, or was the last one to; others wait for it."""


def confirm_study_name(study_name: str) -> str:
    """Name of the Optuna study that holds the confirmation trials; no study file can bear it."""
    return f"{study_name} (confirm)"
