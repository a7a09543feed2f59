"""A checkpoint by its name: where its files are, what they record, and the model. Torch is imported to load weights only."""

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sb3_tgrpo.openvla.actions import check_statistics, resolve_unnorm_key
from sb3_tgrpo.openvla.config import TINY_IDENTITY, OpenVLAConfig, tiny_config
from sb3_tgrpo.openvla.conventions import CAMERAS, LIBERO_CAMERA, Conventions
from sb3_tgrpo.openvla.folder import identity, identity_by_ends, read_json

if TYPE_CHECKING:
    import torch as th

    from sb3_tgrpo.openvla.model import OpenVLA

logger = logging.getLogger(__name__)

UPSTREAM_CHECKPOINTS = {
    "libero_spatial": "openvla/openvla-7b-finetuned-libero-spatial",
    "libero_object": "openvla/openvla-7b-finetuned-libero-object",
    "libero_goal": "openvla/openvla-7b-finetuned-libero-goal",
    "libero_10": "openvla/openvla-7b-finetuned-libero-10",
}
"""Fine-tunes published by OpenVLA's authors, by suite."""

UPSTREAM_IMAGE_SIZE, TINY_IMAGE_SIZE = 256, 128
"""Frames that environments show where a checkpoint records no size, by its image recipe."""

_UPSTREAM = Conventions("full", "libero", LIBERO_CAMERA, (UPSTREAM_IMAGE_SIZE, UPSTREAM_IMAGE_SIZE))
_OFT_FILES = ("action_head--*", "proprio_projector--*", "noisy_action_projector--*", "vision_backbone--*")
_OFT_NAME = re.compile(r"((?<![a-z])|(?<=openvla))oft(?![a-z])", re.IGNORECASE)


class Checkpoint:
    """
    A checkpoint's name, and what its folder records. Nothing is read before it is asked for.

    :param name: Folder in the upstream layout, hub id, ``"tiny"``, or another object of this class.
    :param download: Whether files of a hub id may be downloaded; else only those in the hub's cache are seen.
    """

    def __init__(self, name: "str | os.PathLike[str] | Checkpoint", download: bool = True) -> None:
        self.name = str(name)
        self.download = download

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def is_tiny(self) -> bool:
        """Whether it is the checkpoint that is built in."""
        return self.name == "tiny"

    @property
    def is_hub_id(self) -> bool:
        """Whether it is no folder, but may be something on the Hugging Face hub."""
        return is_hub_id(self.name)

    @property
    def is_upstream(self) -> bool:
        """Whether it is one of the fine-tunes that OpenVLA's authors published."""
        return self.name in UPSTREAM_CHECKPOINTS.values()

    @property
    def is_here(self) -> bool:
        """Whether its files are on this machine."""
        if self.is_tiny or not self.is_hub_id:
            return True
        try:
            from huggingface_hub import snapshot_download

            snapshot_download(self.name, local_files_only=True)
        except (ImportError, FileNotFoundError):  # huggingface_hub's LocalEntryNotFoundError is one
            return False
        return True

    @property
    def folder(self) -> Path:
        """Folder of all its files, after downloading them if need be; a ValueError if there is none."""
        return self._fetch(_ALL_FILES)

    def check_name(self) -> None:
        """Refuse OpenVLA-OFT's hub ids, a ValueError, by the name alone."""
        if self.is_hub_id and _OFT_NAME.search(self.name):
            _refuse(self.name, "its name")

    def _fetch(self, patterns: Sequence[str] = ("config.json", "dataset_statistics.json")) -> Path:
        assert not self.is_tiny, "tiny has no folder"
        self.check_name()
        return find_checkpoint(self.name, patterns, self.download)

    @cached_property
    def config(self) -> OpenVLAConfig:
        """
        Sizes, image recipe and conventions.

        :raises ValueError: If there is no such checkpoint, or it is not OpenVLA's.
        """
        if self.is_tiny:
            return OpenVLAConfig.from_dict(tiny_config(), "the tiny configuration")
        path = self._fetch() / "config.json"
        config = OpenVLAConfig.from_dict(read_json(path), str(path))
        check_statistics(config.norm_stats, f"norm_stats in {path}")
        return config

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """
        Action statistics by name.

        :raises ValueError: If they are damaged, or the checkpoint is not OpenVLA's.
        """
        found = self.config.norm_stats
        if self.is_tiny:
            return found
        if (path := self._fetch() / "dataset_statistics.json").is_file():
            found = read_json(path)
            check_statistics(found, str(path))
        _refuse_oft(self.name, path.parent, found)
        return found

    @cached_property
    def identity(self) -> str:
        """Fingerprint of all weights, settings and statistics."""
        return TINY_IDENTITY if self.is_tiny else identity(self.folder)

    def matches(self, recorded: str) -> bool:
        """
        Whether a recorded identity is this checkpoint's.

        :param recorded: :attr:`identity` of some time; fingerprints of versions before 0.2 are compared by their rule.
        """
        if recorded in (self.identity, "tiny" if self.is_tiny else self.identity):
            return True
        if self.is_tiny or recorded != identity_by_ends(self.folder):
            return False
        warn_of_ends(self.name)
        return True

    @property
    def _sft_record(self) -> dict[str, Any]:
        return self.config.raw.get("sb3_tgrpo", {}).get("sft", {})

    @cached_property
    def conventions(self) -> Conventions:
        """What inputs and outputs mean, as far as it is recorded. Upstream's own are known without their files."""
        return _UPSTREAM if self.is_upstream else self.config.conventions

    @property
    def assets(self) -> Literal["full", "light"] | None:
        """LIBERO assets to play it on, None if none are recorded. Tiny is for the light ones."""
        return "light" if self.is_tiny else self.conventions.assets

    @property
    def default_assets(self) -> Literal["light", "auto"]:
        """Assets for those who name none. LIBERO's own are not asked for by name, since that may download them."""
        return "light" if self.assets == "light" else "auto"

    @property
    def instructions(self) -> list[str] | None:
        """Instructions of the demonstrations that it was trained on, None if they are not recorded."""
        return self._sft_record.get("demonstrations", {}).get("instructions")

    @property
    def image_size(self) -> int:
        """Height and width of the frames that environments should show it."""
        recorded = self.conventions.image_size or self._sft_record.get("demonstrations", {}).get("image_size")
        if recorded:
            return int(recorded[0])
        return UPSTREAM_IMAGE_SIZE if self.config.pipeline == "libero" else TINY_IMAGE_SIZE

    def env_kwargs(self, image_size: int | None = None, assets: str | None = None) -> dict[str, Any]:
        """
        Keyword arguments with which LIBERO's environments show what the checkpoint was trained on.

        :param image_size: Height and width that the user asked for; None = the checkpoint's.
        :param assets: Assets that the user asked for; None = :attr:`default_assets`.
        """
        camera = CAMERAS.get(self.conventions.image_key or LIBERO_CAMERA, "image")
        shown = {} if camera == "image" else {"observations": (camera,)}
        size = self.image_size if image_size is None else image_size
        return {**shown, "assets": assets or self.default_assets, "image_size": size}

    def assumptions(self) -> str | None:
        """What is assumed in LIBERO's environments because ``config.json`` does not record it, in one line; else None."""
        if self.is_tiny:
            return None
        size = self.image_size
        assumed = {"assets": "full", "gripper": "libero", "image_key": LIBERO_CAMERA, "image_size": f"{size}x{size}"}
        missing = [f"{name}={value}" for name, value in assumed.items() if getattr(self.conventions, name) is None]
        return f"{self.name}: config.json does not record, and assumed is: {', '.join(missing)}." if missing else None

    def check_assets(self, assets: str | None, by_name: bool, trained: Conventions | None = None) -> None:
        """
        Refuse assets that the checkpoint has never seen, unless they were asked for by name.

        :param assets: Kind that the environment shows, None for an environment without assets.
        :param by_name: Whether the user asked for these assets by name.
        :param trained: Conventions that hold instead of the checkpoint's, such as an adapter's.
        :raises ValueError: If the checkpoint was trained on others. Without a record these are LIBERO's own.
        """
        if not (self.is_tiny or assets is None or by_name):
            known = (trained or self.conventions).over(Conventions(assets="full"))
            known.check_assets(assets, by_name, f"the checkpoint {self.name!r}")

    def unnorm_key(self, key: str | None = None, suite: str | None = None) -> str:
        """
        Name of the action statistics to decode with.

        :param key: The name that the user asked for, None to choose.
        :param suite: LIBERO suite of the environment, if any.
        :raises ValueError: If there is none, the choice is open, or the only ones are another robot's.
        """
        return resolve_unnorm_key(list(self.statistics), key, suite, self.recorded_unnorm_key)

    @property
    def recorded_unnorm_key(self) -> str | None:
        """Name of the statistics of its training; supervised fine-tuning by this package has always written its own alone."""
        if self.conventions.unnorm_key is None and self._sft_record and len(self.statistics) == 1:
            return next(iter(self.statistics))
        return self.conventions.unnorm_key

    def load(
        self,
        dtype: "th.dtype | str | None" = None,
        device: "th.device | str" = "auto",
        quantization: Literal["4bit"] | None = None,
    ) -> "OpenVLA":
        """The model in evaluation mode with frozen parameters; arguments and errors are :func:`load_openvla`'s."""
        from sb3_tgrpo.openvla.loading import load_folder, place_model, resolve_device, resolve_dtype

        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        if quantization not in (None, "4bit"):
            raise ValueError(f"quantization must be None or '4bit', got {quantization!r}.")
        if self.is_tiny:
            from sb3_tgrpo.openvla.tiny import build_tiny

            return place_model(build_tiny(), dtype, device, quantization)
        config, statistics = self.config, self.statistics  # a folder that is refused is not downloaded whole
        folder = self.folder
        # 4-bit layers are made from full-precision ones, which must not all be on the GPU at once.
        model = load_folder(folder, config, dtype, "cpu" if quantization else device)
        model.norm_stats = statistics
        model.identity, model.identity_by_ends = self.identity, identity_by_ends(folder)
        return place_model(model, dtype, device, quantization)


def load_openvla(
    folder_or_hub_id: str | os.PathLike[str],
    dtype: "th.dtype | str | None" = None,
    device: "th.device | str" = "auto",
    quantization: Literal["4bit"] | None = None,
) -> "OpenVLA":
    """
    Load an OpenVLA checkpoint.

    :param folder_or_hub_id: A folder with the layout of ``openvla/openvla-7b``, a Hugging Face hub id, or ``"tiny"``.
    :param dtype: Precision of the weights; None = float32 on CPU and bfloat16 on CUDA.
    :param device: Device to load to, ``"auto"`` = CUDA if there is one.
    :param quantization: ``"4bit"`` stores the language model's linear layers in 4-bit NormalFloat (bitsandbytes, CUDA only).
        Experimental: it has not been run on a GPU.
    :return: The model in evaluation mode with frozen parameters.
    :raises ValueError: If the folder isn't an OpenVLA checkpoint, is incomplete or damaged, or CUDA is asked for and absent;
        the message names the cause.
    :raises ImportError: If ``quantization`` is given without bitsandbytes.
    """
    return Checkpoint(folder_or_hub_id).load(dtype, device, quantization)


def upstream_checkpoint(suite: str | None) -> str:
    """Hub id of a suite's upstream fine-tune; a ValueError if it has none."""
    if suite in UPSTREAM_CHECKPOINTS:
        return UPSTREAM_CHECKPOINTS[suite]
    raise ValueError(
        f"No upstream checkpoint is known for this environment (suite {suite!r}): pass policy_kwargs=dict(checkpoint=...), "
        "a hub id, a folder or 'tiny'."
    )


_ALL_FILES = ("*.json", "*.safetensors", "tokenizer.model")


def find_checkpoint(
    folder_or_hub_id: str | os.PathLike[str], patterns: Sequence[str] = _ALL_FILES, download: bool = True
) -> Path:
    """A local folder as it is; a hub id after downloading its files of these patterns, or as the cache has it."""
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return folder
    name = str(folder_or_hub_id)
    if not is_hub_id(name):
        raise ValueError(f"checkpoint {name!r} is neither a folder nor a hub id (owner/name) nor 'tiny'.")
    from huggingface_hub import snapshot_download

    try:
        # Of a snapshot in the cache all files are seen.
        return Path(
            snapshot_download(name, allow_patterns=list(patterns) if download else None, local_files_only=not download)
        )
    except Exception as error:
        raise ValueError(
            f"Could not get the checkpoint {name!r} from the Hugging Face hub: {error}. "
            "Check the name and the network, or pass a folder that holds it."
        ) from error


def is_hub_id(name: str) -> bool:
    """Whether a name is no folder, but may be something on the Hugging Face hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not os.path.isdir(name)


def _check_folder(folder: Path) -> None:
    """Refuse what holds no checkpoint, such as a run folder, whose config.json holds its settings."""
    if _holds_checkpoint(folder):
        return
    inside = sorted({*folder.glob("*/config.json"), *folder.glob("*/*/config.json")}, key=lambda file: len(file.parts))
    meant = next((file.parent for file in inside if _holds_checkpoint(file.parent)), None)
    if meant is not None:
        raise ValueError(f"checkpoint {str(folder)!r} is a folder around a checkpoint: did you mean {str(meant)!r}?")
    if not (folder / "config.json").is_file():
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ValueError(f"{folder} is not an OpenVLA checkpoint: it has no config.json (it holds {present}).")


def _holds_checkpoint(folder: Path) -> bool:
    try:
        return "text_config" in read_json(folder / "config.json")
    except (OSError, ValueError):
        return False


def _refuse_oft(name: str, folder: Path, statistics: Mapping[str, Any]) -> None:
    """OpenVLA-OFT's folders hold OpenVLA's tensors, but another network plays them."""
    for pattern in _OFT_FILES:
        if found := next(folder.glob(pattern), None):
            _refuse(name, found.name)
    for key, entry in statistics.items():
        proprio = entry.get("proprio") if isinstance(entry, dict) else None
        if isinstance(proprio, dict) and any(any(proprio.get(bound) or ()) for bound in ("q01", "q99", "std")):
            _refuse(name, f"proprioceptive statistics of {key!r}")  # OpenVLA's own are zeros


def _refuse(name: str, sign: str) -> None:
    raise ValueError(
        f"checkpoint {name!r} is OpenVLA-OFT's ({sign}): it decodes chunks of actions in parallel and may read two cameras "
        "and the robot's state. Played as OpenVLA it would give other actions without an error. Pass an OpenVLA checkpoint."
    )


def warn_of_ends(name: str) -> None:
    """Warn that a checkpoint's fingerprint of a version before 0.2 was compared."""
    warnings.warn(
        f"{name}: compared by the fingerprint of a version before 0.2, which cannot see the middle of a file. Save again to "
        "record the whole files.",
        stacklevel=3,
    )
