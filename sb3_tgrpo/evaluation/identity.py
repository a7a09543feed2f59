"""Which policy an evaluation is of: its name, its parameters, and what its actions depend on besides."""

import hashlib
import json
import pickle
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_tgrpo.evaluation.adapters import Policy, is_vla, sb3_policy

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

_OTHER_FACTOR = re.compile(r"(\blora_(?:embedding_)?)([AB])\b")


def policy_name(policy: Policy) -> str:
    """The checkpoint with the adapter merged into it, or the class."""
    inner = sb3_policy(policy)
    checkpoint = getattr(inner, "checkpoint", None)
    own = type(policy).__name__
    if (adapter := getattr(inner, "start_adapter", None)) is not None:
        checkpoint = f"{checkpoint} + {adapter.name}"
    return own if checkpoint is None else str(checkpoint) if policy is inner else f"{own} on {checkpoint}"


def fingerprint(policy: Policy) -> str:
    """
    Digest of every number of all parameters (15 GB take about 20 s). Of a new adapter, whose one factor is random and whose
    other is zero, the random one does not count: it changes nothing.
    """
    digest = hashlib.blake2b(digest_size=8)
    tensors = sb3_policy(policy).state_dict()
    for name, tensor in tensors.items():
        factor = _OTHER_FACTOR.sub(lambda found: found[1] + {"A": "B", "B": "A"}[found[2]], name)
        if factor != name and factor in tensors and not tensors[factor].any():
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(th.uint8).numpy())
    return digest.hexdigest()


def policy_record(policy: Policy) -> dict[str, Any]:
    """Everything of a policy that its actions depend on, for JSON."""
    record: dict[str, Any] = {"fingerprint": fingerprint(policy)}
    if is_vla(policy):
        vla = cast("OpenVLAPolicy", sb3_policy(policy))
        statistics = json.dumps(vla.model.norm_stats[vla.unnorm_key], sort_keys=True, default=np.ndarray.tolist)
        record |= {
            "unnorm_key": vla.unnorm_key,
            "statistics": hashlib.blake2b(statistics.encode(), digest_size=8).hexdigest(),
            "gripper": vla.gripper,
            "image_key": vla.conventions.image_key,
            "instruction": vla.instruction,
            "dtype": str(vla.model.dtype),
            "quantization": vla.quantization,
        }
    normaliser = policy.get_vec_normalize_env() if isinstance(policy, BaseAlgorithm) else None
    if normaliser is not None:
        moments = pickle.dumps((normaliser.obs_rms if normaliser.norm_obs else None, normaliser.clip_obs, normaliser.epsilon))
        record["normaliser"] = hashlib.blake2b(moments, digest_size=8).hexdigest()
    return record
