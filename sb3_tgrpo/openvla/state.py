"""What a saved policy holds: everything that was trained and nothing frozen. State-dict hooks of ``OpenVLAPolicy``."""

from typing import Any, Protocol, cast

import torch as th
from torch import nn

from sb3_tgrpo.policies import reconcile_reference


class _Policy(Protocol):
    checkpoint: str
    base_identity: th.Tensor
    reference_model: Any

    def saved_names(self) -> set[str]: ...
    def clear_caches(self) -> None: ...
    def freeze_reference(self) -> None: ...
    def matches_base(self, identity: bytes) -> bool: ...


def remove_frozen(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """After ``state_dict()``: leave out the backbone, which the checkpoint holds."""
    policy = cast(_Policy, module)
    kept = {prefix + name for name in policy.saved_names()}
    for name in [name for name in state_dict if name.startswith(prefix) and name not in kept]:
        del state_dict[name]


def check_base(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """
    Before loading: refuse parameters of another base, and make room for a saved reference copy; where none was saved, this
    policy's stays.

    :raises ValueError: If the fingerprints differ.
    """
    policy = cast(_Policy, module)
    saved = state_dict.get(prefix + "base_identity")
    if saved is not None and not policy.matches_base(bytes(saved.tolist())):
        raise ValueError(
            f"These parameters were trained on another base than {policy.checkpoint!r}: pass the checkpoint (and adapter) "
            "they belong to through policy_kwargs, at loading through custom_objects={'policy_kwargs': ...}."
        )
    if saved is not None:
        state_dict[prefix + "base_identity"] = policy.base_identity.clone()
    reconcile_reference(policy.reference_model, policy.freeze_reference, state_dict, prefix + "reference_model.")


def ignore_missing_frozen(module: nn.Module, incompatible_keys: Any) -> None:
    """After loading: the backbone is not missing, it was never saved."""
    policy = cast(_Policy, module)
    saved = policy.saved_names()
    incompatible_keys.missing_keys[:] = [name for name in incompatible_keys.missing_keys if name in saved]
    policy.clear_caches()
