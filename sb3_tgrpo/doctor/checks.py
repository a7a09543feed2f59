"""
Checks of what silently ruins results. Each check is a function of :class:`Subject` that returns a :class:`Finding`; one that
raises becomes a failed finding.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from sb3_tgrpo.envs.libero.assets import Assets
    from sb3_tgrpo.envs.libero.env import LiberoEnv
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

Status = Literal["ok", "failed", "note", "not checked"]

HF_LIBERO = "0.1.4"
"""Pinned in the installation rather than in the package's metadata, as it is installed without its requirements."""

# Mean of a 128x128 frame of libero_object-0's first stored start with the pinned MuJoCo (EGL and OSMesa agree), and how far
# another renderer may be off. MuJoCo 3.8 draws this frame 38 levels darker.
BRIGHTNESS = {"full": 135.7, "light": 130.7}
BRIGHTNESS_TOLERANCE = 8.0
REFERENCE_TASK = ("libero_object", 0)

_PARITY_STEPS = 5


@dataclass(frozen=True)
class Finding:
    """
    What a check found.

    :param check: Its name.
    :param status: ``"note"`` is worth knowing, but no failure.
    :param found: The facts.
    :param remedy: What to do, if there is something to be done.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    """
    A training run to estimate the memory of.

    :raises ValueError: For a number that is not a positive integer.
    """

    group_size: int = 4
    n_groups: int = 1
    batch_size: int | None = None
    n_steps: int | None = None
    lora: str | None = "language"
    dtype: str | None = None
    quantization: Literal["4bit"] | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("group_size", "n_groups", "batch_size", "n_steps"):
            value = getattr(self, name)
            optional = name in ("batch_size", "n_steps")
            if not (optional and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}.")


@dataclass
class Subject:
    """
    What is checked, loaded when first needed.

    :param env_id: LIBERO environment.
    :param assets: As for :class:`~sb3_tgrpo.envs.LiberoEnv`.
    :param checkpoint: Hub id, folder or ``"tiny"``; None = none is checked.
    :param unnorm_key: Action statistics meant to be used.
    :param device: Where the policy is checked.
    :param plan: A run to estimate memory for; None = none.
    """

    env_id: str = "LIBERO/libero_object-0-v0"
    assets: str = "auto"
    checkpoint: str | None = None
    unnorm_key: str | None = None
    device: str = "auto"
    plan: Plan | None = None

    @cached_property
    def task(self) -> tuple[str, int]:
        """Suite and index."""
        suite, _, index = self.env_id.removeprefix("LIBERO/").removesuffix("-v0").rpartition("-")
        if not self.env_id.startswith("LIBERO/") or not index.isdigit():
            raise ValueError(f"--env {self.env_id}: the checks know LIBERO's environments, such as LIBERO/libero_object-3-v0.")
        return suite, int(index)

    @cached_property
    def found_assets(self) -> "Assets":
        """The assets in force."""
        from sb3_tgrpo.envs.libero.assets import resolve_assets

        return resolve_assets(self.assets)

    def make_env(self, task: tuple[str, int], **kwargs: Any) -> "LiberoEnv":
        """A task's environment."""
        from sb3_tgrpo.envs import LiberoEnv

        return LiberoEnv(*task, assets=self.found_assets.kind, **kwargs)

    @cached_property
    def policy(self) -> "OpenVLAPolicy":
        """The checkpoint as a policy, without an adapter to train."""
        from stable_baselines3.common.utils import FloatSchedule

        from sb3_tgrpo.openvla.loading import read_config
        from sb3_tgrpo.openvla.policy import OpenVLAPolicy

        assert self.checkpoint is not None
        size = 256 if read_config(self.checkpoint).pipeline == "libero" else 128
        env = self.make_env(self.task, image_size=size)
        return OpenVLAPolicy(
            env.observation_space, env.action_space, FloatSchedule(0.0), checkpoint=self.checkpoint,
            unnorm_key=self.unnorm_key, lora=None, value_head=False, device=self.device, temperature=0.7,
        )  # fmt: skip


Check = Callable[[Subject], Finding]


def examine(subject: Subject, checks: Sequence[tuple[str, Check]] | None = None) -> list[Finding]:
    """
    Carry out the checks.

    :param subject: What to check.
    :param checks: Names and functions; None = all.
    """
    if checks is None:
        from sb3_tgrpo.doctor.policy import POLICY_CHECKS

        checks = (*CHECKS, *POLICY_CHECKS)
    return [_carry_out(name, check, subject) for name, check in checks]


def _carry_out(name: str, check: Check, subject: Subject) -> Finding:
    try:
        return check(subject)
    except Exception as error:  # whatever it is, the other checks go on
        remedy = getattr(error, "remedy", "The message says what is wrong; the other rows may say why.")
        return Finding(name, "failed", f"{type(error).__name__}: {error}", remedy)


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for JSON."""
    return {"ok": healthy(findings), "findings": [asdict(finding) for finding in findings]}


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether no check failed."""
    return not any(finding.status == "failed" for finding in findings)


# ---------------------------------------------------------------------- installation


def check_versions(subject: Subject) -> Finding:
    """Installed packages against the pins of this package's metadata."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    right: list[str] = []
    absent: list[str] = []
    pins = [*(requires("sb3-tgrpo") or []), f"hf-libero=={HF_LIBERO}; extra == 'libero'"]
    for text in dict.fromkeys(pins):
        requirement = Requirement(text)
        if requirement.extras or requirement.name == "sb3-tgrpo" or not str(requirement.specifier):
            continue
        marker = str(requirement.marker or "")
        if any(extra in marker for extra in ('"dev"', '"all"', '"extra"')):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            (absent if marker else wrong).append(f"{requirement.name} is not installed")
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        (right if fits else wrong).append(
            f"{requirement.name} {installed}" + ("" if fits else f", needed {requirement.specifier}")
        )
    if wrong:
        return Finding("versions", "failed", "; ".join(wrong), 'pip install -c constraints.txt "sb3-tgrpo[all]"')
    found = f"{len(right)} packages within their pins" + (f"; {'; '.join(absent)}" if absent else "")
    return Finding("versions", "note" if absent else "ok", found, "Install the extras that you need." if absent else "")


def check_mujoco(subject: Subject) -> Finding:
    """The version that LIBERO's pictures and dynamics were recorded with."""
    from sb3_tgrpo.envs.libero.gl import choose_gl

    choose_gl()  # before MuJoCo is imported
    import mujoco

    pinned = _pinned("mujoco")
    remedy = f"pip install mujoco=={pinned}: other versions draw LIBERO's scenes darker, which a policy has never seen."
    if mujoco.__version__ != pinned:
        return Finding("MuJoCo", "failed", f"{mujoco.__version__}, LIBERO's results are of {pinned}", remedy)
    return Finding("MuJoCo", "ok", mujoco.__version__)


def _pinned(package: str) -> str:
    """Exact version in this package's metadata."""
    for text in requires("sb3-tgrpo") or []:
        if text.startswith(f"{package}=="):
            return text.removeprefix(f"{package}==").split(";")[0].strip()
    raise LookupError(f"sb3-tgrpo's metadata do not pin {package}: install it again (pip install -e .).")


def check_gl(subject: Subject) -> Finding:
    """The OpenGL backend."""
    from sb3_tgrpo.envs.libero.gl import MISSING_GL, choose_gl

    named = os.environ.get("MUJOCO_GL")
    try:
        backend = choose_gl()
    except RuntimeError as error:
        return Finding("OpenGL", "failed", str(error), MISSING_GL)
    how = "as MUJOCO_GL says" if named else "chosen"
    return Finding("OpenGL", "ok", f"{backend or 'of the system'} ({how})")


def check_torchvision(subject: Subject) -> Finding:
    """A torchvision built for another torch makes transformers fail or fall back silently."""
    name = "torchvision, timm"
    present = [package for package in ("torchvision", "timm") if importlib.util.find_spec(package) is not None]
    if not present:
        return Finding(name, "ok", "not installed, not needed")
    try:
        for package in present:
            importlib.import_module(package)
    except Exception as error:  # an operator missing from a mismatched build, for instance
        return Finding(
            name, "failed", f"{package} does not import beside this torch ({error})", f"pip uninstall {' '.join(present)}"
        )
    found = ", ".join(f"{package} {version(package)}" for package in present)
    return Finding(name, "note", f"{found}: installed, not used here")


def check_api_key(subject: Subject) -> Finding:
    """Whether rewards can be written by a language model; the key itself is never shown."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return Finding("API key", "ok", "ANTHROPIC_API_KEY is set")
    remedy = "Only `sb3-tgrpo reward generate` needs it: export ANTHROPIC_API_KEY=..."
    return Finding("API key", "note", "ANTHROPIC_API_KEY is not set", remedy)


# ---------------------------------------------------------------------- simulator


def check_assets(subject: Subject) -> Finding:
    """Which models the simulator shows, and whether all are there."""
    from sb3_tgrpo.envs.libero.assets import ASSETS_VARIABLE, missing_files

    try:
        assets = subject.found_assets
    except FileNotFoundError as error:
        return Finding("assets", "failed", str(error), f"Complete the folder, or point {ASSETS_VARIABLE} at another.")
    if assets.kind == "light":
        why = "" if subject.assets == "light" else "; LIBERO's own were not found on this machine"
        remedy = "" if subject.assets == "light" else f"For checkpoints trained on LIBERO's own, set {ASSETS_VARIABLE}."
        return Finding("assets", "ok" if subject.assets == "light" else "note", f"light (built in){why}", remedy)
    if missing := missing_files(assets.path):
        shown = ", ".join(missing[:3])
        return Finding("assets", "failed", f"{assets.path}: {len(missing)} missing, {shown}", "Download the folder again.")
    return Finding("assets", "ok", f"full, complete: {assets.path}")


def check_brightness(subject: Subject) -> Finding:
    """A frame's mean against the stored figure: another MuJoCo or a broken renderer shows here first."""
    kind = subject.found_assets.kind
    env = subject.make_env(REFERENCE_TASK, image_size=128)
    try:
        observation, _ = env.reset(seed=0, options={"init_state_id": 0})
    finally:
        env.close()
    mean, expected = float(observation["image"].mean()), BRIGHTNESS[kind]
    found = f"mean {mean:.1f} of a {kind} frame, expected {expected:.1f} within {BRIGHTNESS_TOLERANCE:g}"
    if abs(mean - expected) <= BRIGHTNESS_TOLERANCE:
        return Finding("rendered frame", "ok", found)
    remedy = "Compare the MuJoCo and OpenGL rows; try MUJOCO_GL=osmesa. Textures may be missing or replaced."
    return Finding("rendered frame", "failed", found, remedy)


def check_parity(subject: Subject) -> Finding:
    """Start state and controller against LIBERO's own environment, step by step."""
    name = "parity with LIBERO"
    if importlib.util.find_spec("libero") is None:
        remedy = "pip install --no-deps hf-libero==" + HF_LIBERO
        return Finding(name, "failed", "LIBERO is not installed, which its environments need", remedy)
    suite, task = subject.task
    theirs = libero_states(subject)
    ours = our_states(subject)
    difference = float(np.abs(ours - theirs).max())
    found = f"{suite}-{task}: largest difference {difference:.1e} in the start and {_PARITY_STEPS} steps"
    if difference == 0.0:
        return Finding(name, "ok", found)
    steps = np.abs(ours - theirs).max(axis=1)
    where = "in the start already" if steps[0] > 0 else f"from step {int(np.argmax(steps > 0))} on"
    remedy = "Compare robosuite and MuJoCo with their pins: physics here is not what published results had."
    return Finding(name, "failed", f"{found}, {where}", remedy)


def _probe_actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (_PARITY_STEPS, 7)).astype(np.float32)


def our_states(subject: Subject) -> np.ndarray:
    """Flattened states ``(steps + 1, n)`` of :class:`~sb3_tgrpo.envs.LiberoEnv` from the first stored start."""
    env = subject.make_env(subject.task, observations=())
    try:
        env.reset(seed=0, options={"init_state_id": 0})
        states = [env.flat_state()]
        for action in _probe_actions():
            env.step(action)
            states.append(env.flat_state())
    finally:
        env.close()
    return np.stack(states)


def libero_states(subject: Subject) -> np.ndarray:
    """The same of LIBERO's own ``OffScreenRenderEnv``."""
    from sb3_tgrpo.envs.libero.assets import libero_assets
    from sb3_tgrpo.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS
    from sb3_tgrpo.envs.libero.process import prepare_process
    from sb3_tgrpo.envs.libero.scene import global_numpy_seed
    from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts

    prepare_process()
    task = get_task(*subject.task)
    with global_numpy_seed(), libero_assets(subject.found_assets.path):
        from libero.libero.envs import OffScreenRenderEnv

        env = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), use_camera_obs=False)
        try:
            env.seed(0)
            env.reset()
            env.set_init_state(stored_starts(task)[0])
            for _ in range(SETTLE_STEPS):
                env.step(np.array(SETTLE_ACTION))
            states = [env.get_sim_state().copy()]
            for action in _probe_actions():
                env.step(action.astype(np.float64))
                states.append(env.get_sim_state().copy())
        finally:
            env.close()
    return np.stack(states)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions", check_versions),
    ("OpenGL", check_gl),
    ("MuJoCo", check_mujoco),
    ("torchvision, timm", check_torchvision),
    ("API key", check_api_key),
    ("assets", check_assets),
    ("rendered frame", check_brightness),
    ("parity with LIBERO", check_parity),
)
