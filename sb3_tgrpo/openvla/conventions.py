"""What a policy's inputs and outputs mean, as ``config.json`` records it under ``sb3_tgrpo``. Without torch."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

CAMERAS = {"agentview_rgb": "image", "eye_in_hand_rgb": "wrist_image"}
"""Observations of LIBERO's environments, by the camera's name in files of demonstrations."""

LIBERO_CAMERA = "agentview_rgb"


@dataclass(frozen=True)
class Conventions:
    """
    How a policy was trained to see and to act. None stands for what is not recorded.

    :param assets: LIBERO assets, ``"full"`` or ``"light"``.
    :param gripper: ``"libero"`` for OpenVLA's gripper converted to LIBERO's, ``"none"`` for no conversion.
    :param image_key: Camera, by its name in files of demonstrations.
    :param image_size: Height and width of the camera's frames.
    :param unnorm_key: Action statistics that tokens decode with.
    """

    assets: Literal["full", "light"] | None = None
    gripper: Literal["libero", "none"] | None = None
    image_key: str | None = None
    image_size: tuple[int, int] | None = None
    unnorm_key: str | None = None

    @classmethod
    def read(cls, record: Mapping[str, Any], source: str) -> "Conventions":
        """
        Conventions of a parsed file.

        :param record: The file's ``sb3_tgrpo`` entry; other keys are ignored.
        :param source: Name of the file, for messages.
        :raises ValueError: If an entry has no meaning.
        """
        values = {field.name: record[field.name] for field in fields(cls) if record.get(field.name) is not None}
        allowed: dict[str, tuple[str, ...]] = {"assets": ("full", "light"), "gripper": ("libero", "none")}
        for name, value in values.items():
            if name == "image_size":
                fits = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
                values[name] = tuple(value) if fits else value
            else:
                fits = isinstance(value, str) and (name not in allowed or value in allowed[name])
            if not fits:
                raise ValueError(f"{source}: sb3_tgrpo.{name}={value!r} has no meaning. Get the file again.")
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """Entries of ``config.json``'s ``sb3_tgrpo``; what is None is left out."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value is not None}

    def over(self, other: "Conventions") -> "Conventions":
        """These conventions, completed by others that hold where these are None."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Conventions(*(there if here is None else here for here, there in pairs))

    def observation(self, space: Any) -> str:
        """
        Name of the observation that shows the recorded camera.

        :param space: The environment's observation space, a ``Dict``.
        :return: ``"image"``, or ``"wrist_image"`` for LIBERO's camera in the hand.
        :raises ValueError: If LIBERO's environment shows another camera only.
        """
        camera = self.image_key or LIBERO_CAMERA
        name = CAMERAS.get(camera)
        if hasattr(space.spaces.get("instruction"), "suite") and name not in space.spaces:
            shown = ", ".join(key for key in space.spaces if key != "instruction") or "no picture"
            remedy = f"observations=({name!r},)" if name else f"one of LIBERO's cameras, {' or '.join(CAMERAS)}"
            raise ValueError(
                f"image_key={camera!r}: the checkpoint was trained on this camera, the environment shows {shown}. "
                f"Make the environment with {remedy}."
            )
        return name if name is not None and name in space.spaces else "image"

    def check_image_size(self, height: int, width: int, source: str) -> None:
        """
        Refuse an environment's frames if another size is recorded.

        :param source: Name of the checkpoint, for the message.
        """
        if self.image_size is not None and self.image_size != (height, width):
            raise ValueError(
                f"image_size={height}x{width}: {source} was trained on frames of {self.image_size[0]}x{self.image_size[1]}, "
                f"which look different even after resizing. Make the environment with image_size={self.image_size[0]}."
            )

    def check_assets(self, assets: str | None, by_name: bool, who: str) -> None:
        """
        Refuse assets that a policy has never seen: on them it would only look like a bad policy.

        :param assets: Kind that the environment shows, None for an environment without assets.
        :param by_name: Whether the user asked for these assets by name.
        :param who: Name of the policy or checkpoint, for the message.
        :raises ValueError: If training used other assets, and these were not asked for by name.
        """
        if assets is None or by_name or self.assets in (None, assets):
            return
        if assets == "full":
            raise ValueError(
                f"The environment uses LIBERO's own assets, but {who} was trained with the light ones. "
                "Ask for these, or for the others by name: assets='light' or assets='full'."
            )
        raise ValueError(
            f"The environment uses the light assets, but {who} was trained with LIBERO's own. Point "
            "SB3_TGRPO_LIBERO_ASSETS at them, or ask for the light ones by name: assets='light'."
        )
