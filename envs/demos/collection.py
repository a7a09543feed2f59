"""Collecting demonstrations with a scripted expert, in parallel, resumable."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sb3_tgrpo.envs.demos.files import OWN, RecordedDemo, moving_steps, write_demos
from sb3_tgrpo.envs.experts.disturbances import Disturbance
from sb3_tgrpo.envs.experts.motion import ActionNoise
from sb3_tgrpo.envs.libero.assets import resolve_assets, write_atomically
from sb3_tgrpo.envs.libero.target_variants import target_facts, target_variant
from sb3_tgrpo.envs.libero.tasks import LiberoTask, get_task, stored_starts
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts, parse_task_id
from sb3_tgrpo.version import __version__

if TYPE_CHECKING:
    from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
    from sb3_tgrpo.envs.experts.smooth import SmoothExpert
    from sb3_tgrpo.envs.libero.env import LiberoEnv

_LIBRARIES = ("mujoco", "robosuite", "hf-libero", "numpy", "h5py")
_UPPER_BOUNDS = (
    ("noise", 1.0), ("dart", 1.0), ("pushes", 1.0), ("slips", 1.0), ("detour", 0.2), ("start_noise", 0.5),
    ("joint_noise", 0.5),
)  # fmt: skip


@dataclass(frozen=True)
class CollectionSettings:
    """
    What is collected. The same settings give the same file, whatever the number of processes.

    :param task: ``libero_object-3`` or ``LIBERO/libero_object-3-v0``.
    :param episodes: number of demonstrations in the file.
    :param seed: of starts, expert and noise.
    :param noise: standard deviation of noise on the motion, executed and recorded (action units).
    :param dart: likewise, executed only: the recorded action is what the expert wanted (DART, arXiv 1703.09327).
    :param pushes: probability per step of a push off the way for a few steps, executed only.
    :param slips: probability per step that the gripper does the opposite for a few steps, executed only.
    :param expert: ``"scripted"`` for all tasks, or ``"smooth"``, which small networks imitate more easily, for
        LIBERO-Object and its variants (:mod:`~sb3_tgrpo.envs.experts.smooth`).
    :param detour: metres by which the expert varies its ways.
    :param start_noise: drawn starts are widened by so many metres per object.
    :param joint_noise: standard deviation of noise on the arm's joints in drawn starts, radians.
    :param stored_starts: start from LIBERO's 50 stored states, in turn, instead of drawn ones.
    :param keep_failures: keep unsuccessful episodes too, instead of trying further starts.
    :param drop_noops: leave out steps without motion or gripper change, as OpenVLA's preparation does.
    :param assets: ``"full"``, ``"light"`` or ``"auto"``.
    :param image_size: pixels.
    :param wrist_image: also record the gripper's camera.
    :param target: another object of the task's scene to demonstrate with (:mod:`~sb3_tgrpo.envs.libero.target_variants`);
        None = the task's own.
    :raises ValueError: for a value out of range.
    """

    task: str
    episodes: int
    seed: int = 0
    noise: float = 0.0
    dart: float = 0.0
    pushes: float = 0.0
    slips: float = 0.0
    expert: Literal["scripted", "smooth"] = "scripted"
    detour: float = 0.02
    start_noise: float = 0.0
    joint_noise: float = 0.0
    stored_starts: bool = False
    keep_failures: bool = False
    drop_noops: bool = False
    assets: str = "auto"
    image_size: int = 256
    wrist_image: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        for name, high in _UPPER_BOUNDS:
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ValueError(f"{name} must be between 0 and {high}, got {value}.")
        if self.expert not in ("scripted", "smooth"):
            raise ValueError(f"expert must be 'scripted' or 'smooth', got {self.expert!r}.")
        if isinstance(self.image_size, bool) or not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size must be a positive integer (pixels), got {self.image_size!r}.")
        if self.stored_starts and (self.start_noise or self.joint_noise):
            raise ValueError("start_noise and joint_noise widen drawn starts; they can't be used together with stored_starts.")

    @property
    def name(self) -> str:
        """What is demonstrated: ``libero_object-3``, or ``libero_object-3:ketchup`` with another target."""
        return self.task if self.target is None else f"{self.task}:{self.target}"

    @property
    def max_attempts(self) -> int:
        """Episodes tried before giving up."""
        return self.episodes if self.keep_failures else 4 * self.episodes + 20


class CollectionError(RuntimeError):
    """Collection can't be completed; what is done is kept, as the message says."""


# ---------------------------------------------------------------------- one episode


def record_episode(env: "LiberoEnv", settings: CollectionSettings, index: int) -> RecordedDemo:
    """
    Play and record one episode.

    :param env: with observations ``image``, ``state`` and, if wanted, ``wrist_image``.
    :param index: number of the attempt: with the settings' seed it decides everything random.
    """
    seeds = np.random.SeedSequence([settings.seed, index]).generate_state(3)
    if settings.stored_starts:
        state_id = index % len(stored_starts(env.task))
        observation, info = env.reset(seed=0, options={"init_state_id": state_id})
    else:
        observation, info = env.reset(seed=int(seeds[0]))
    expert = _make_expert(settings, int(seeds[1]))
    rng = np.random.default_rng(int(seeds[2]))
    noise, disturb = ActionNoise(settings.noise, rng), Disturbance(settings.dart, rng, settings.pushes, settings.slips)
    disturbed = settings.dart > 0 or settings.pushes > 0 or settings.slips > 0
    rows = _Rows(env)
    finished = success = False
    while not finished:
        label = expert.act(env.facts())
        if settings.noise > 0:
            label = noise(label)
        rows.append(observation, label)
        observation, _, success, truncated, _ = env.step(disturb(label) if disturbed else label)
        finished = success or truncated
    record = {"episode": index, "seed": int(info["scene_seed"]), "init_state_id": info["init_state_id"], "dropped": 0}
    return rows.demo(success, settings.drop_noops, record)


class _Rows:
    """What is recorded of an episode, step by step."""

    def __init__(self, env: "LiberoEnv") -> None:
        self._env = env
        robot = env.sim.scene.robot
        self._joints = [int(address) for address in robot._ref_joint_pos_indexes]
        self._rows: dict[str, list[np.ndarray]] = {}

    def append(self, observation: dict[str, np.ndarray], action: np.ndarray) -> None:
        """The state before an action, and the action."""
        env = self._env
        state = observation["state"]
        facts = env.facts()
        row = {
            "actions": np.asarray(action, np.float64),
            "states": env.flat_state(),
            "robot_states": np.concatenate([state[6:], state[:3], facts["eef_quat"]]),
            "agentview_rgb": observation["image"],
            "ee_states": state[:6],
            "ee_pos": state[:3],
            "ee_ori": state[3:6],
            "gripper_states": state[6:],
            "joint_states": env.data.qpos[self._joints].copy(),
        }
        if "wrist_image" in observation:
            row["eye_in_hand_rgb"] = observation["wrist_image"]
        row |= {f"facts/{key}": np.asarray(value) for key, value in facts.items()}
        for name, value in row.items():
            self._rows.setdefault(name, []).append(np.array(value))

    def demo(self, success: bool, drop_noops: bool, record: dict[str, Any]) -> RecordedDemo:
        """The episode."""
        arrays = {name: np.stack(values) for name, values in self._rows.items()}
        if drop_noops:
            kept = moving_steps(arrays["actions"])
            record = {**record, "dropped": len(arrays["actions"]) - len(kept)}
            arrays = {name: values[kept] for name, values in arrays.items()}
        facts = {name[6:]: arrays.pop(name) for name in list(arrays) if name.startswith("facts/")}
        top = {name: arrays.pop(name) for name in ("actions", "states", "robot_states")}
        model_file = self._env.sim.scene.problem.sim.model.get_xml()
        return RecordedDemo(**top, observations=arrays, success=success, facts=facts, model_file=model_file, record=record)


def _task_facts(settings: CollectionSettings) -> TaskFacts:
    """What the expert needs to know."""
    facts = load_task_facts(settings.task)
    return facts if settings.target is None else target_facts(facts, settings.target)


def _make_expert(settings: CollectionSettings, seed: int) -> "ScriptedExpert | SmoothExpert":
    """
    Whoever demonstrates.

    :raises ValueError: if the expert can't do the task.
    """
    from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
    from sb3_tgrpo.envs.experts.smooth import SmoothExpert

    expert_class = SmoothExpert if settings.expert == "smooth" else ScriptedExpert
    return expert_class(_task_facts(settings), detour=settings.detour, seed=seed)


def _libero_task(settings: CollectionSettings) -> LiberoTask:
    task = get_task(*parse_task_id(settings.task))
    return task if settings.target is None else target_variant(task, settings.target)


def _plain(settings: CollectionSettings) -> CollectionSettings:
    """
    The same settings with one name for each thing: no gym id, no instance's name, no target that is the task's own.

    :raises ValueError: for an unknown task or target.
    """
    suite, index = parse_task_id(settings.task)
    task, variant = get_task(suite, index), _libero_task(settings)
    target = None
    if variant != task:
        kind = {thing.name: thing.kind for thing in load_task_facts(settings.task).objects}
        target = kind.get(settings.target or "", settings.target)
    return dataclasses.replace(settings, task=f"{suite}-{index}", target=target, assets=resolve_assets(settings.assets).kind)


def _make_env(settings: CollectionSettings) -> "LiberoEnv":
    from sb3_tgrpo.envs.libero.env import LiberoEnv

    suite, index = parse_task_id(settings.task)
    cameras = ("image", "wrist_image") if settings.wrist_image else ("image",)
    return LiberoEnv(
        suite,
        index,
        target=settings.target,
        assets=settings.assets,  # type: ignore[arg-type]
        observations=(*cameras, "state"),
        image_size=settings.image_size,
        start_noise=settings.start_noise,
        joint_noise=settings.joint_noise,
    )


# ---------------------------------------------------------------------- processes and shards

_worker_env: "LiberoEnv | None" = None


def _end_with_parent() -> None:
    """In a worker: end when the process that started it is gone. One that was killed can't tell, and the worker would stay."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shard(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:05d}.hdf5"


def _outcome(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:05d}.json"


def _collect_one(settings: CollectionSettings, folder: Path, index: int) -> None:
    """In a worker: play an episode, and store it if it is to be kept. The outcome's file comes last."""
    global _worker_env
    if _worker_env is None:
        _worker_env = _make_env(settings)
    demo = record_episode(_worker_env, settings, index)
    if demo.success or settings.keep_failures:
        write_demos(_shard(folder, index), {}, iter([demo]))
    outcome = {"success": demo.success, "steps": len(demo.actions)}
    write_atomically(_outcome(folder, index), json.dumps(outcome).encode())


def _read_outcomes(folder: Path) -> dict[int, dict[str, Any]]:
    return {int(path.stem[8:]): json.loads(path.read_text()) for path in sorted(folder.glob("episode_*.json"))}


def _chosen(settings: CollectionSettings, outcomes: dict[int, dict[str, Any]]) -> list[int] | None:
    """The attempts that make up the file: the first ones that count. None while one of them is missing."""
    chosen: list[int] = []
    for index in range(settings.max_attempts):
        if index not in outcomes:
            return None
        if outcomes[index]["success"] or settings.keep_failures:
            chosen.append(index)
        if len(chosen) == settings.episodes:
            return chosen
    failures = settings.max_attempts - len(chosen)
    raise CollectionError(
        f"{settings.name}: the expert failed in {failures} of {settings.max_attempts} episodes, so that {settings.episodes} "
        "demonstrations were not reached. Lower noise, dart, detour or start_noise, or keep failures."
    )


def _fingerprint(settings: CollectionSettings, kind: str) -> dict[str, Any]:
    """What has to agree for episodes of an earlier run to be used: everything but their number."""
    plain = dataclasses.asdict(settings)
    del plain["episodes"]
    return {**plain, "assets": kind, "version": __version__}


def _open_folder(folder: Path, settings: CollectionSettings, kind: str) -> dict[int, dict[str, Any]]:
    """Make or reopen the folder of finished episodes."""
    wanted = _fingerprint(settings, kind)
    file = folder / "settings.json"
    outcomes = _read_outcomes(folder)
    if outcomes and file.is_file():
        found = json.loads(file.read_text())
        if different := sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key)):
            raise ValueError(
                f"{folder} holds episodes collected with other settings ({', '.join(different)}): "
                "remove it to start anew, or collect into another file."
            )
    else:  # settings without an episode bind nobody
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, indent=1).encode())
    return outcomes


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """
    Inside, no other process may collect into the file; the lock goes with the process.

    :raises OSError: if one does.
    """
    import fcntl  # not on Windows, where the settings can still be made

    # Beside the folder of episodes, which goes while the lock is held.
    path = out.with_name(f".{out.name}.lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that has just finished may have removed the file between opening and locking.
            mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise OSError(f"another process collects into {out}: wait for it, or name another file.")
        try:
            yield
        finally:
            path.unlink()


def collect_demos(
    settings: CollectionSettings,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    command: str = "",
    progress: Callable[[dict[int, dict[str, Any]]], None] | None = None,
) -> Path:
    """
    Collect demonstrations into a file.

    Finished episodes are kept in a folder beside it (``<out>.partial``) until the file is complete, so that the same call
    continues after an interruption.

    :param settings: what to collect.
    :param out: the HDF5 file; replaced if it exists.
    :param workers: processes; the file does not depend on it.
    :param command: recorded in the file.
    :param progress: called with the outcomes so far, by attempt: ``{"success": bool, "steps": int}``.
    :return: the file.
    :raises ValueError: if the folder holds episodes collected with other settings, or the expert can't do the task.
    :raises OSError: if another process collects into the file.
    :raises CollectionError: if the expert fails too often, or a process dies.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out={out} is a folder: name a file in it, such as {out / 'demos.hdf5'}.")
    settings = _plain(settings)  # what is unknown is refused here, not in every process
    _make_expert(settings, 0)  # likewise a task that the expert can't do
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        return _collect(settings, out, workers, command, progress)


def _collect(
    settings: CollectionSettings,
    out: Path,
    workers: int,
    command: str,
    progress: Callable[[dict[int, dict[str, Any]]], None] | None,
) -> Path:
    """Go on with the folder of finished episodes, write the file, remove the folder."""
    folder = out.with_name(f"{out.name}.partial")
    outcomes = _open_folder(folder, settings, settings.assets)
    if progress:
        progress(outcomes)
    _fill(settings, folder, outcomes, workers, progress)
    chosen = _chosen(settings, outcomes)
    assert chosen is not None
    # Attempts past the last chosen one depend on the number of workers, and are not counted.
    counted = {index: outcomes[index] for index in range(chosen[-1] + 1)}
    write_demos(out, file_attributes(settings, command, counted), _read_shards(folder, chosen))
    shutil.rmtree(folder)
    return out


def _fill(
    settings: CollectionSettings,
    folder: Path,
    outcomes: dict[int, dict[str, Any]],
    workers: int,
    progress: Callable[[dict[int, dict[str, Any]]], None] | None,
) -> None:
    """Play attempts in order until enough of them count."""
    attempts = iter(index for index in range(settings.max_attempts) if index not in outcomes)
    context = multiprocessing.get_context("spawn")
    pending: dict[Future[None], int] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            while _chosen(settings, outcomes) is None:
                enough = settings.episodes - sum(o["success"] or settings.keep_failures for o in outcomes.values())
                # Not more attempts than could still be needed: each costs its time even when it is not used.
                while len(pending) < min(2 * workers, max(enough, 1)) and (index := next(attempts, None)) is not None:
                    pending[pool.submit(_collect_one, settings, folder, index)] = index
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    index = pending.pop(future)
                    future.result()
                    outcomes[index] = json.loads(_outcome(folder, index).read_text())
                if progress:
                    progress(outcomes)
        except BrokenProcessPool as error:
            raise CollectionError(
                f"A process died (out of memory?). Finished episodes are kept in {folder}: the same command continues."
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _read_shards(folder: Path, chosen: list[int]) -> Iterator[RecordedDemo]:
    import h5py

    for index in chosen:
        with h5py.File(_shard(folder, index), "r") as file:
            group = file["data/demo_0"]
            record = json.loads(group.attrs[OWN])
            yield RecordedDemo(
                actions=group["actions"][()],
                states=group["states"][()],
                robot_states=group["robot_states"][()],
                observations={name: values[()] for name, values in group["obs"].items()},
                success=record.pop("success"),
                facts={name: values[()] for name, values in group["facts"].items()},
                model_file=str(group.attrs["model_file"]),
                record=record,
            )


def file_attributes(settings: CollectionSettings, command: str, outcomes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The attributes of the file's group ``data``: LIBERO's own, and ours."""
    from sb3_tgrpo.envs.registration import gym_id

    suite, index = parse_task_id(settings.task)
    task = _libero_task(settings)
    text = task.read_bddl()
    # A variant is none of LIBERO's files, although one may have its name.
    bddl_name = f"bddl_files/{suite}/{task.name}.bddl" if settings.target is None else f"{task.name}.bddl"
    problem = text.split("(define (problem ", 1)[1].split(")", 1)[0].strip().lower()
    cameras = ["robot0_eye_in_hand", "agentview"]
    env_kwargs = {
        "robots": ["Panda"],
        "bddl_file_name": bddl_name,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": cameras,
        "reward_shaping": True,
        "control_freq": 20,
        "camera_heights": settings.image_size,
        "camera_widths": settings.image_size,
        "camera_segmentations": None,
    }
    env_name = "_".join(part.capitalize() for part in problem.split("_"))
    plain = dataclasses.asdict(settings)
    if settings.target is None:
        del plain["target"]  # files of LIBERO's own tasks are what they were before there were variants
    own = {
        **plain,
        "env_id": gym_id(suite, index),
        "observation": "before the action",
        "attempts": len(outcomes),
        "successes": sum(outcome["success"] for outcome in outcomes.values()),
        "version": __version__,
        "libraries": {name: _version(name) for name in _LIBRARIES} | {"python": sys.version.split()[0]},
        "command": command,
    }
    return {
        "env_name": env_name,
        "env_args": json.dumps(
            {"type": 1, "env_name": env_name, "problem_name": problem, "bddl_file": bddl_name, "env_kwargs": env_kwargs}
        ),
        "problem_info": json.dumps(
            {"problem_name": problem, "domain_name": "robosuite", "language_instruction": task.instruction}
        ),
        "bddl_file_name": bddl_name,
        "bddl_file_content": text,
        "macros_image_convention": "opengl",
        "tag": "libero-v1",
        "suite": suite,
        "task": settings.name,
        "assets": settings.assets,
        OWN: json.dumps(own),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
