"""The parts of a run. Each can be interrupted and goes on where it was."""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from sb3_tgrpo.baselines.ungrouped import GROUPED, REFERENCES, algorithm_class
from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.evaluate import evaluate_policy
from sb3_tgrpo.evaluation.protocol import Execution, Protocol
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation, read_episodes, task_name
from sb3_tgrpo.files import JsonLines, atomic_copytree
from sb3_tgrpo.run_folder import RunFolder, cpu_count
from sb3_tgrpo.train.callbacks import MetricsCallback, ResumeCallback, ThreadsCallback, TimedVecEnv, save_atomically
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.model import make_model, make_policy, make_training_env, tensorboard_folder
from sb3_tgrpo.train.setup import Setup, env_source, evaluation_protocol
from sb3_tgrpo.train.view import RunView, count

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool

METRICS_FILE = "metrics.jsonl"
MODEL_FILE = "model.zip"
RESUME_FILE = "resume.zip"
MOST_THREADS = 4
"""Threads of updates by default, at most: the tiny policy's layers are too small for more to share."""


def evaluation_name(when: str, temperature: float) -> str:
    """Folder name of an evaluation, such as ``before_greedy`` and ``after_T1``."""
    return f"{when}_{Decoding(temperature)}".replace("=", "")


@dataclass(frozen=True)
class Run:
    """A resolved run in its folder."""

    config: TrainConfig
    setup: Setup
    folder: RunFolder
    view: RunView

    # ------------------------------------------------------------------ evaluation

    def protocol(self, temperature: float) -> Protocol:
        """The protocol of an evaluation."""
        return evaluation_protocol(self.config, self.setup, temperature)

    def evaluate(
        self,
        policy: BasePolicy | Callable[[], BasePolicy],
        when: str,
        temperature: float,
        pool: "WorkerPool",
        folder: RunFolder | None = None,
    ) -> Evaluation:
        """
        Play the stored initial states, or go on after the last episode that was played. A function that makes the policy is
        called only if it is needed; the evaluation is kept in ``evaluations`` of the folder, by default the run's own.
        """
        title = f"evaluate {when}, {Decoding(temperature)}"
        place = RunFolder((folder or self.folder) / "evaluations" / evaluation_name(when, temperature))
        protocol = self.protocol(temperature)
        if (place / "evaluation.json").is_file() and not isinstance(policy, BasePolicy):
            settings = place.read("settings.json")
            record = {"protocol": protocol.record([task_name(self.config.task.env)])}
            place.claim("settings.json", {**(settings or {}), **record}, results=("evaluation.json",))
            found = Evaluation.load(place / "evaluation.json")
            self.view.skip_stage(title, str(found.rate))
            return found
        done = read_episodes(place / "episodes.jsonl")
        successes = [episode.success for episode in done]
        n_envs = self.config.evaluation.eval_n_envs
        total = protocol.n_initial_states * protocol.repetitions
        self.view.begin_stage(title, total, "episodes", done=len(done), first_round=n_envs, text="simulators start")

        def progress(episode: EvalEpisode, n_done: int, n_all: int) -> None:
            successes.append(episode.success)
            self.view.advance(n_done, f"{sum(successes)} of {len(successes)} succeeded")

        found = evaluate_policy(
            policy if isinstance(policy, BasePolicy) else policy(),
            self._envs(),
            protocol,
            folder=place.path,
            name=place.path.name,
            execution=Execution(n_envs=n_envs, videos="none", progress=progress, pool=pool),
        )
        self.view.end_stage(str(found.rate))
        return found

    def film(self, policy: BasePolicy, file: Path, temperature: float, number: int, pool: "WorkerPool") -> None:
        """A video of the episode that :meth:`evaluate` has played from the initial state of that number."""
        protocol = self.protocol(temperature)
        seeds = None if protocol.seeds is None else (protocol.seeds[number],)
        one = replace(protocol, repetitions=1, init_state_ids=(protocol.init_state_ids[number],), seeds=seeds)
        with tempfile.TemporaryDirectory(dir=file.parent) as made:
            evaluate_policy(policy, self._envs(), one, folder=made, execution=Execution(n_envs=1, videos="all", pool=pool))
            (video,) = Path(made).rglob("*.mp4")
            os.replace(video, file)

    def _envs(self) -> Any:
        source = env_source(self.config)
        return source if isinstance(source, str) else {self.config.task.env: source}

    # ------------------------------------------------------------------ training

    def train(self) -> BasePolicy:
        """Train, or go on from the last saved update, and return the last policy."""
        algo = self.config.algorithm.algo
        if algo == "sft":
            return self._leave_as_it_is()
        title, kind, finished = algo.upper(), algorithm_class(algo), self.folder / MODEL_FILE
        if finished.is_file():
            model = kind.load(finished, device=self.config.device)
            self.view.rows = self.rows(model.num_timesteps)
            self.view.skip_stage(title, f"{model.num_timesteps:,} steps")
            return model.policy
        total = self.config.algorithm.total_timesteps
        self.view.begin_stage(title, total, "steps", first_round=math.inf, text="simulators start")
        env: VecEnv = TimedVecEnv(make_training_env(self.config, self.setup))
        if algo not in REFERENCES:  # SB3 would turn every image round, only for the policy to turn it back
            env = VecTransposeImage(env, skip=True)
        try:
            model = self._model(env)
            self.view.resume(model.num_timesteps, self.rows(model.num_timesteps))
            with self._on_wandb():
                if total > model.num_timesteps:
                    left = total - model.num_timesteps
                    model.learn(left, CallbackList(self._callbacks()), reset_num_timesteps=False, tb_log_name=title)
            rows = self.rows(model.num_timesteps)
            self._export(model)
            save_atomically(model, finished)
            (self.folder / RESUME_FILE).unlink(missing_ok=True)
            self.view.end_stage(f"{model.num_timesteps:,} steps, {count(len(rows), 'update')}")
            return model.policy
        finally:
            env.close()

    def rows(self, timesteps: int) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl`` up to a saved model, which has made so many steps; refuses a file that lacks some."""
        file = self.folder / METRICS_FILE
        rows = [row for row in JsonLines(file).read() if row["timesteps"] <= timesteps]
        whole = [row["update"] for row in rows] == list(range(1, len(rows) + 1))
        if not whole or (rows[-1]["timesteps"] if rows else 0) != timesteps:
            raise ValueError(
                f"{file} lacks updates of the model beside it, which has made {timesteps:,} steps. Put the file back, or "
                "choose another folder with --out."
            )
        return rows

    def _model(self, env: VecEnv) -> OnPolicyAlgorithm:
        """The model of the last saved update, or a new one."""
        config, resume = self.config, self.folder / RESUME_FILE
        if not resume.is_file():
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            model: Any = make_model(config, self.setup, self.folder, env)
        else:
            kind: Any = algorithm_class(config.algorithm.algo)
            model = kind.load(resume, env=env, device=config.device, tensorboard_log=tensorboard_folder(self.folder))
            if config.algorithm.algo not in GROUPED:  # these do not save their random state, and start their episodes anew
                sequence = np.random.SeedSequence([config.seed, model.num_timesteps])
                model.set_random_seed(int(sequence.generate_state(1)[0] >> 1))
        if config.algorithm.algo in GROUPED:
            model.saves_on_interrupt = False  # resume.zip does better
        return model

    def _callbacks(self) -> list[BaseCallback]:
        algorithm = self.config.algorithm
        wanted = algorithm.groups_per_update if algorithm.algo in GROUPED else None
        threads = ThreadsCallback(self.config.threads, self.config.update_threads or min(cpu_count(), MOST_THREADS))
        metrics = MetricsCallback(
            self.folder / METRICS_FILE,
            self.view.update,
            lambda timesteps, groups: self.view.sampling(timesteps, groups, wanted),
            self.view.updating,
        )
        return [threads, metrics, ResumeCallback(self.folder / RESUME_FILE, self.config.save_every)]

    def _leave_as_it_is(self) -> BasePolicy:
        """No training: what was found of the base policy before also holds after."""
        for place in (self.folder / "evaluations").glob("before_*"):
            after = place.with_name(place.name.replace("before_", "after_"))
            if not after.exists():
                atomic_copytree(place, after)
        return make_policy(self.config, self.setup)

    def _export(self, model: OnPolicyAlgorithm) -> None:
        """The adapter as a PEFT folder, or the trained weights as a checkpoint; references have neither."""
        policy: Any = model.policy
        if not hasattr(policy, "export_merged"):
            return
        if policy.lora is not None:
            policy.export_adapter(self.folder / "adapter")
        else:
            policy.export_merged(self.folder / "checkpoint", dtype="float32")

    def _on_wandb(self) -> Any:
        """A run on Weights & Biases that follows TensorBoard's, if asked for."""
        if self.config.wandb is None:
            return nullcontext()
        import wandb  # type: ignore[import-not-found, unused-ignore]

        # The same id at every call, so that a resumed run goes on in the same place; another folder or time is another run.
        path = self.folder.path.resolve()
        name = f"{path.name}-{self.config.seed}"
        beginning = f"{path} {(self.folder.read('run.json') or {}).get('started')}"
        return wandb.init(
            project=self.config.wandb,
            name=name,
            id=f"{name}-{hashlib.sha256(beginning.encode()).hexdigest()[:8]}",
            resume="allow",
            dir=os.fspath(self.folder.path),
            config=self.config.to_dict(),
            sync_tensorboard=True,
        )


def check_extras(config: TrainConfig) -> None:
    """Check that whatever is asked for is installed, and the device here, before any work is done."""
    if config.algorithm.algo != "sft":
        algorithm_class(config.algorithm.algo)
    if config.wandb is not None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise ImportError("--wandb needs wandb: pip install wandb") from error
    from sb3_tgrpo.openvla.loading import resolve_device

    resolve_device(config.device)
