"""``sb3-tgrpo train``: configuration, a whole run, interruption, several seeds, and messages when something is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from toy_envs import SignalEnv
from vla_toy import TOY_FLAGS as TOY
from vla_toy import Toy

from sb3_tgrpo import TGRPO
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.train import config_from
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.evaluation.player import env_maker
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.openvla import Checkpoint
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.callbacks import MetricsCallback, ResumeCallback, ThreadsCallback, TimedVecEnv
from sb3_tgrpo.train.config import BUDGETS, TrainConfig, flags, load_config, parse_setting, shipped_start
from sb3_tgrpo.train.errors import TrainingError, explain
from sb3_tgrpo.train.job import has_begun, run_training
from sb3_tgrpo.train.model import make_model, make_policy
from sb3_tgrpo.train.setup import (
    describe_initial_states,
    evaluation_protocol,
    resolve_setup,
    task_mismatch_warning,
)
from sb3_tgrpo.train.stages import Run
from sb3_tgrpo.train.view import RunView

HELPERS = Path(__file__).parents[1] / "helpers"


def toy_config() -> TrainConfig:
    names = iter(TOY)
    settings = ((flag[2:].replace("-", "_"), next(names)) for flag in names)
    given = {name: parse_setting(name, value) for name, value in settings}
    return TrainConfig().updated(given)


def test_the_discount_reaches_the_algorithm(tmp_path: Path) -> None:
    """``gamma`` is the name of PPO's."""
    config = toy_config().updated({"gamma_traj": 0.9, "gamma": 0.5, "compare_ended": True})
    setup = resolve_setup(config, Checkpoint(str(config.base_policy.checkpoint)))
    env = make_group_env(Toy, 2, subprocess=False)
    model = make_model(config, setup, RunFolder(tmp_path), env)
    env.close()
    assert isinstance(model, TGRPO) and model.rollout_buffer.gamma == 0.9 and model.compare_ended


# ---------------------------------------------------------------------- configuration


def test_configuration_makes_a_round_trip(tmp_path: Path) -> None:
    config = toy_config().updated({"eval_temperatures": (0.0, 0.5), "target_kl": 0.1, "max_episode_steps": 7})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert load_config(file) == config != TrainConfig()
    assert set(config.to_dict()) >= {"task", "base_policy", "algorithm", "evaluation", "seed"}
    for budget in BUDGETS.values():
        assert TrainConfig.from_dict(budget.to_dict()) == budget


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"algorithm": {"lerning_rate": 1.0}},
            "unknown algorithm.lerning_rate. Available: algo, total_timesteps, learning_rate",
        ),
        ({"speed": 1}, "unknown speed. Available: task, base_policy, algorithm, baseline, evaluation, seed"),
        ({"seed": "one"}, "seed='one': it must be of type int"),
        ({"seed": True}, "seed=True: it must be of type int"),
        ({"task": {"assets": "heavy"}}, "task.assets='heavy': it must be one of 'auto', 'full', 'light'"),
        ({"algorithm": 3}, "algorithm. must be an object"),
        ({"evaluation": {"eval_temperatures": 1}}, "it must be a list"),
        ({"algorithm": {"group_size": 1}}, "group_size=1: it must be at least 2"),
        ({"algorithm": {"learning_rate": 0}}, "algorithm.learning_rate=0.0: it must be above 0"),
        ({"algorithm": {"kl_coef": -1}}, "algorithm.kl_coef=-1.0: it must be at least 0"),
        ({"algorithm": {"groups_per_update": 3, "parallel_groups": 2}}, "must be a multiple of parallel_groups=2"),
        ({"base_policy": {"from_scratch": True, "checkpoint": "tiny"}}, "leave out checkpoint='tiny'"),
        ({"evaluation": {"eval_temperatures": [0, 0]}}, "must be one or more different numbers"),
        ({"task": {"initial_states": "stored", "start_noise": 0.1}}, "leave it out with initial_states='stored'"),
        ({"algorithm": {"outcome_reward": "success", "alpha_step": 0.0, "stop_on": "success"}}, "(now 'success')"),
        ({"algorithm": {"outcome_reward": "success", "stop_on": "never"}}, "alpha_step=0 (now 0.3)"),
        ({"algorithm": {"gamma_traj": 1.5}}, "gamma_traj=1.5: it must be above 0 and at most 1"),
        (
            {"algorithm": {"algo": "trpo"}, "evaluation": {"eval_temperatures": [0, 0.7]}},
            "of trpo has none but 0 and 1",
        ),
    ],
)
def test_bad_configurations(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.from_dict(change)


def test_flags_cover_every_setting_once() -> None:
    names = [name for _, name, *_ in flags()]
    assert len(names) == len(set(names))
    config = TrainConfig().to_dict()
    assert sum(len(value) if isinstance(value, dict) else 1 for value in config.values()) == len(names)


def parse(*arguments: str) -> TrainConfig:
    import argparse

    from sb3_tgrpo.cli import train

    parser = argparse.ArgumentParser()
    train.add_parser(parser.add_subparsers())
    return config_from(parser.parse_args(["train", *arguments]))


def test_flags_outrank_the_file_and_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"seed": 4, "algorithm": {"learning_rate": 0.5, "target_kl": 0.3}}))
    config = parse("--config", str(file), "--learning-rate", "0.25", "--target-kl", "none", "--eval-temperatures", "0", "0.5")
    assert (config.seed, config.algorithm.learning_rate, config.algorithm.target_kl) == (4, 0.25, None)
    assert config.evaluation.eval_temperatures == (0.0, 0.5)
    assert parse() == TrainConfig() and parse("--budget", "long") == BUDGETS["long"]
    assert parse("--from-scratch", "--assets", "light").base_policy.from_scratch
    with pytest.raises(ValueError, match="leave one out"):
        parse("--config", str(file), "--budget", "long")


def test_missing_base_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sb3_tgrpo.train.config.START_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="pass --checkpoint FOLDER, or --from-scratch"):
        shipped_start()
    (tmp_path / "config.json").write_text("{}")
    assert shipped_start() == tmp_path


# ---------------------------------------------------------------------- a run


def test_run_folder(finished: Path) -> None:
    run = RunFolder(finished)
    assert run.read("config.json") == toy_config().to_dict()
    record = run.read("run.json")
    assert record["versions"]["torch"] == th.__version__ and record["seed"] == 0 and record["cores"] >= 1
    rows = JsonLines(finished / "metrics.jsonl").read()
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1)) and rows[-1]["timesteps"] >= 100
    for key in ("rollout/group_reward", "rollout/progress", "rollout/member_success_rate", "train/loss", "train/kl_loss",
                "time/env_seconds", "time/policy_seconds", "time/update_seconds"):  # fmt: skip
        assert all(np.isfinite(row[key]) for row in rows), key
    assert all(sum(row["furthest"]) == 4 and len(row["stages"]) <= 4 for row in rows)
    results = run.read("results.json")
    assert set(results["modes"]) == {"greedy", "T=1"} and results["updates"] == len(rows)
    for mode in results["modes"].values():
        assert mode["before"]["episodes"] == mode["after"]["episodes"] == mode["paired"]["initial_state"]["n_pairs"] == 3
    for name in ("model.zip", "checkpoint/config.json", "videos/before.mp4", "videos/after.mp4", "plots/curves.png",
                 "plots/stages.png", "plots/furthest.png", "plots/before_after.png", "report.html"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "tensorboard").rglob("events*")) and not (finished / "resume.zip").exists()


def test_stages_are_counted_right(finished: Path) -> None:
    rows = JsonLines(finished / "metrics.jsonl").read()
    steps = [row["timesteps"] for row in rows]
    assert [sum(row["stages"]) for row in rows] == list(np.diff([0, *steps]))  # every step that counts is in one stage
    for row in rows:
        successes = row["rollout/member_success_rate"] * 4
        assert (row["furthest"] + [0] * 4)[3] == round(successes)  # three stages done is success


def test_evaluations_are_of_the_last_policy(finished: Path) -> None:
    from sb3_tgrpo.evaluation.identity import fingerprint
    from sb3_tgrpo.evaluation.results import Evaluation

    model = TGRPO.load(finished / "model.zip", device="cpu")
    after = Evaluation.load(finished / "evaluations/after_greedy/evaluation.json")
    before = Evaluation.load(finished / "evaluations/before_greedy/evaluation.json")
    start = fingerprint(model.policy)
    assert after.protocol["policy_fingerprint"] != before.protocol["policy_fingerprint"]
    assert model.num_timesteps >= 100 and start


def test_a_finished_run_is_shown_at_once(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["train", *TOY, "--out", str(finished)]) == 0
    output = capsys.readouterr().out
    assert "greedy" in output and "points (no interval: 3 initial states" in output and "report.html" in output
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}


def test_other_settings_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TOY, "--kl-coef", "0.5", "--out", str(finished)]) == 1
    assert "algorithm.kl_coef was 0.0, is 0.5" in capsys.readouterr().err
    assert main(["train", *TOY, "--threads", "2", "--save-every", "3", "--out", str(finished)]) == 0  # these may change


def test_another_base_policy_or_other_assets_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same settings, but what they name has changed: what was played before can't be compared with what would be now."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results.json").unlink()
    run = RunFolder(tmp_path)
    found = run.read("setup.json")
    assert found == {"start": Checkpoint("tiny").identity, "assets": "none", "reward": None}
    for changed, message in (
        ({"start": "other"}, "start was 'other', is 'tiny-"),
        ({"assets": "full"}, "assets was 'full'"),
        ({"reward": "other"}, "reward was 'other', is None"),
    ):
        run.write("setup.json", found | changed)
        assert main(["train", *TOY, "--out", str(tmp_path)]) == 1 and message in capsys.readouterr().err


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    identity = resolve_setup(TrainConfig(), Checkpoint(shipped_start())).checkpoint.identity
    copy = shutil.copytree(shipped_start(), tmp_path / "copy")
    assert resolve_setup(TrainConfig(), Checkpoint(copy)).checkpoint.identity == identity
    weights = copy / "model-00001-of-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve_setup(TrainConfig(), Checkpoint(copy)).checkpoint.identity != identity


def test_all_weights_are_trained_in_single_precision() -> None:
    start = Checkpoint(shipped_start())
    kwargs = resolve_setup(TrainConfig(), start).policy_kwargs
    assert kwargs["lora"] is None and kwargs["dtype"] == "float32"
    saving = TrainConfig().updated({"lora": "language", "gradient_checkpointing": True, "quantization": "4bit"})
    kwargs = resolve_setup(saving, start).policy_kwargs
    assert "dtype" not in kwargs and kwargs["gradient_checkpointing"] and kwargs["quantization"] == "4bit"
    with pytest.raises(ValueError, match=r"quantization='4bit': all weights of .* are trained. Set lora='language'"):
        resolve_setup(TrainConfig().updated({"quantization": "4bit"}), start)


def test_base_policy_is_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are several GPUs, although what is trained there records none."""
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def stop(*spaces: Any, **kwargs: Any) -> None:
        seen.update(kwargs)
        raise Stop

    monkeypatch.setattr("sb3_tgrpo.openvla.policy.OpenVLAPolicy.for_env", stop)
    config = replace(toy_config(), device="cuda:1")
    with pytest.raises(Stop):
        make_policy(config, resolve_setup(config, Checkpoint("tiny")))
    assert seen["device"] == "cuda:1" and "device" not in resolve_setup(config, Checkpoint("tiny")).policy_kwargs


def test_greedily_each_initial_state_is_played_once() -> None:
    config = toy_config().updated({"eval_episodes": 3})
    setup = resolve_setup(config, Checkpoint("tiny"))
    assert [evaluation_protocol(config, setup, t).repetitions for t in (0.0, 1.0)] == [1, 3]


def test_a_call_that_failed_at_once_does_not_bind_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nowhere", "neither"):
        with pytest.raises(ValueError, match=f"checkpoint '{name}' is neither a folder nor"):
            run_training(toy_config().updated({"checkpoint": name}), tmp_path)
    run = RunFolder(tmp_path)
    assert run.read("config.json")["base_policy"]["checkpoint"] == "neither" and not has_begun(run)
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["train", *TOY, "--out", str(tmp_path)]) == 1
    assert "was made with other settings (base_policy.checkpoint was 'neither', is 'tiny')" in capsys.readouterr().err


def test_a_base_policy_that_has_not_seen_the_task() -> None:
    start = str(shipped_start())
    assert task_mismatch_warning("LIBERO/libero_object-8-v0", start) is None
    warning = task_mismatch_warning("LIBERO/libero_object-9-v0", start) or ""
    assert "was taught to 'pick up the chocolate pudding and place it in the basket', not to 'pick up the orange" in warning
    assert task_mismatch_warning("LIBERO/libero_object-9-v0", "tiny") is None  # which has been taught nothing
    assert task_mismatch_warning("CartPole-v1", start) is None
    assert task_mismatch_warning("LIBERO/libero_object-9-v0", "owner/name") is None  # without a download
    with pytest.raises(ValueError, match="checkpoint 'START8' is neither"):
        task_mismatch_warning("LIBERO/libero_object-9-v0", "START8")


def test_initial_states_of_training_in_words() -> None:
    assert describe_initial_states(TrainConfig()) == "drawn by LIBERO's sampler"
    assert (
        describe_initial_states(TrainConfig().updated({"initial_states": "stored"})) == "the stored ones that it is judged on"
    )


def assert_same_result(first: Path, second: Path) -> None:
    """Equal parameters, outcomes and metrics, times aside."""
    models = [TGRPO.load(folder / "model.zip", device="cpu") for folder in (first, second)]
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(a, b)
    results = [RunFolder(folder).read("results.json") for folder in (first, second)]
    assert results[0]["modes"] == results[1]["modes"]
    rows = [JsonLines(folder / "metrics.jsonl").read() for folder in (first, second)]
    plain = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in each] for each in rows]
    assert plain[0] == plain[1]


def run_until(folder: Path, file: str, *arguments: str) -> None:
    """Run in another process, kill it without warning once the file is there, and what it started with it."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "VLA_TOY_PAUSE": "0.05", "PYTHONPATH": str(HELPERS)}
    command = [sys.executable, "-m", "sb3_tgrpo", "train", *TOY, "--out", str(folder), *arguments]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not ((folder / file).is_file() and (folder / file).stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (folder / "results.json").exists()


def test_kill_and_resume(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_until(folder, "evaluations/before_T1/episodes.jsonl")
    assert not (folder / "metrics.jsonl").exists()
    run_until(folder, "resume.zip")
    assert not (folder / "model.zip").exists()
    run_until(folder, "evaluations/after_greedy/episodes.jsonl")
    assert main(["train", *TOY, "--out", str(folder)]) == 0
    assert_same_result(finished, folder)


def test_two_processes_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(tmp_path).locked():
        assert main(["train", *TOY, "--out", str(tmp_path)]) == 1
    assert "in use by another process" in capsys.readouterr().err


def test_several_seeds_are_pooled(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(finished / "config.json"), "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    results = RunFolder(tmp_path).read("results.json")
    for name, mode in results["modes"].items():
        assert [seed["seed"] for seed in mode["per_seed"]] == [0, 1] and mode["after"]["episodes"] == 6
        assert mode["before"]["episodes"] == (3 if name == "greedy" else 6)  # one evaluation, however many seeds start there
        assert mode["after"]["successes"] == sum(seed["after"]["successes"] for seed in mode["per_seed"])
        assert set(mode["paired"]) == {"initial_state", "evaluation"} and f"{name:<8} seed 1" in output
    # Alone or among others, a seed gives the same; the base policy's greedy evaluation is common to both.
    assert_same_result(finished, tmp_path / "seed_0")
    assert (tmp_path / "evaluations/before_greedy").is_dir() and not (tmp_path / "seed_1/evaluations/before_greedy").exists()
    report = (tmp_path / "report.html").read_text()
    assert 'href="seed_1/report.html"' in report
    assert main(["train", *TOY, "--out", str(tmp_path)]) == 1 and "runs of several seeds" in capsys.readouterr().err
    assert main(["train", *TOY, "--seeds", "0", "1", "--out", str(finished)]) == 1 and "one run" in capsys.readouterr().err
    assert main(["train", *TOY, "--seeds", "0", "0", "--out", str(tmp_path)]) == 1
    assert main(["train", *TOY, "--seeds", "0", "--seed", "1", "--out", str(tmp_path)]) == 1


def test_evaluations_find_each_others_simulators() -> None:
    config = TrainConfig()
    setup = resolve_setup(config, Checkpoint(shipped_start()))
    again = resolve_setup(config, Checkpoint(shipped_start()))
    first, second = (cloudpickle.dumps(env_maker(config.task.env, one.env_kwargs)) for one in (setup, again))
    assert first == second
    other = replace(config, task=replace(config.task, payment="potential"))
    assert cloudpickle.dumps(env_maker(config.task.env, resolve_setup(other, Checkpoint(shipped_start())).env_kwargs)) != first


def test_measure_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TOY, "--measure-signal", "4", "--out", str(tmp_path)]) == 0
    assert "as trained" in capsys.readouterr().out
    report = RunFolder(tmp_path).read("signal.json")["report"]
    assert report["n_groups"] == 4 and set(report["variants"]) == {"as trained", "step only", "traj only", "success"}
    assert not (tmp_path / "signal").exists()


def test_killed_measurement_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = ["train", *TOY, "--measure-signal", "16", "--out"]
    assert main([*measured, str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    run_until(folder, "signal/rollout_0001.pt", "--measure-signal", "16")
    assert not (folder / "signal.json").exists()
    assert (
        main([*measured, str(folder), "--learning-rate", "0.5"]) == 1
        and "was made with other settings" in capsys.readouterr().err
    )
    assert main([*measured, str(folder)]) == 0
    assert RunFolder(folder).read("signal.json") == RunFolder(tmp_path / "whole").read("signal.json")


def test_updates_have_threads_of_their_own() -> None:
    seen: list[tuple[str, int]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(("sampling", th.get_num_threads()))
            return True

    env = make_group_env(SignalEnv, 2, subprocess=False)
    model = TGRPO("MlpPolicy", env, seed=0, device="cpu")
    train = model.train
    model.train = lambda: seen.append(("update", th.get_num_threads())) or train()  # type: ignore[func-returns-value, method-assign]
    try:
        model.learn(30, callback=[ThreadsCallback(1, 3), Look()])
    finally:
        after = th.get_num_threads()
        th.set_num_threads(1)
    assert set(seen) == {("sampling", 1), ("update", 3)} and after == 1


# ---------------------------------------------------------------------- what goes wrong


def test_a_policy_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TGRPO, *args: object, **kwargs: object) -> float:
        with th.no_grad():
            next(self.policy.parameters()).fill_(float("nan"))  # type: ignore[attr-defined]
        return 0.0

    monkeypatch.setattr(TGRPO, "_optimizer_step", broken)
    config = toy_config().updated({"eval_temperatures": (0.0,), "eval_initial_states": 1})
    with pytest.raises(TrainingError, match=r"not finite any more.*[Ll]ower learning_rate \(now 0.001\), set target_kl"):
        run_training(config, tmp_path)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "Lower parallel_groups .now 2; each of its 16 simulators"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "groups_per_update .now 2"),
        (th.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "GPU's memory ran out. Lower micro_batch_size"),
        (RuntimeError("Environment 2 ended unexpectedly, exit status -9, after 3 restarts in this group"), "system killed it"),
        (RuntimeError("Environment 2 did not answer within 60 s, after 3 restarts in this group"), "messages of its process"),
        (ValueError("The loss is nan after 3 updates: ..."), "not finite any more"),
        (RuntimeError("The gradient is not finite at update 4 (loss nan)"), "not finite any more"),
    ],
)
def test_failures_come_with_a_remedy(error: Exception, remedy: str) -> None:
    assert re.search(remedy, explain(error, TrainConfig()) or "")


def test_other_failures_are_left_alone() -> None:
    assert (
        explain(ValueError("reward of environment 1 is nan at step 2: rewards must be finite numbers."), TrainConfig()) is None
    )
    assert explain(RuntimeError("something else"), TrainConfig()) is None


def test_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sb3_tgrpo.train.stages.make_training_env", exhausted)
    assert main(["train", *TOY, "--eval-temperatures", "0", "--eval-initial-states", "1", "--out", str(tmp_path)]) == 1
    assert "Lower parallel_groups (now 2; each of its 4 simulators" in capsys.readouterr().err


def test_unknown_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--checkpoint", "tiny", "--reward", "libero_object-99", "--out", str(tmp_path)]) == 1
    assert "reward='libero_object-99'" in capsys.readouterr().err


def test_wandb_is_asked_for_but_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        run_training(toy_config().updated({"wandb": "project"}), tmp_path)
    assert not (tmp_path / "evaluations").exists()  # told before anything is played


def test_wandb_follows_a_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    wandb: Any = ModuleType("wandb")
    wandb.init = lambda **kwargs: calls.append(kwargs)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = toy_config().updated({"wandb": "project"})
    setup = resolve_setup(config, Checkpoint("tiny"))
    for place, started in (("one/run", "today"), ("one/run", "today"), ("one/run", "tomorrow"), ("another/run", "today")):
        folder = RunFolder(tmp_path / place)
        folder.write("run.json", {"started": started})
        Run(config, setup, folder, RunView())._on_wandb()
    assert all(call["project"] == "project" and call["config"] == config.to_dict() for call in calls)
    assert all(call["sync_tensorboard"] and call["resume"] == "allow" for call in calls)
    first, resumed, begun_anew, elsewhere = (call["id"] for call in calls)
    assert first == resumed
    assert len({first, begun_anew, elsewhere}) == 3


# ---------------------------------------------------------------------- callbacks in a script of one's own


def signal_model(**kwargs) -> TGRPO:
    env = TimedVecEnv(make_group_env(SignalEnv, 2, n_groups=2, env_kwargs={"limit": 4}))
    return TGRPO("MlpPolicy", env, seed=1, device="cpu", **kwargs)


def test_callbacks_resume_exactly(tmp_path: Path) -> None:
    straight = signal_model()
    metrics = MetricsCallback(tmp_path / "a.jsonl")
    straight.learn(16 * 5, CallbackList([metrics]))
    assert len(metrics.rows) == 5 and metrics.rows[0]["rollout/groups"] == 2 and "stages" not in metrics.rows[0]
    first = signal_model()
    first.learn(16 * 3, CallbackList([MetricsCallback(tmp_path / "b.jsonl"), ResumeCallback(tmp_path / "r.zip", every=2)]))
    assert len(JsonLines(tmp_path / "b.jsonl").read()) == 3  # one more than the saved model knows of
    env = TimedVecEnv(make_group_env(SignalEnv, 2, n_groups=2, env_kwargs={"limit": 4}))
    again = TGRPO.load(tmp_path / "r.zip", env=env, device="cpu")
    assert again.num_timesteps == 32
    again.learn(16 * 5 - 32, CallbackList([MetricsCallback(tmp_path / "b.jsonl")]), reset_num_timesteps=False)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in JsonLines(tmp_path / name).read()]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert rows[0] == rows[1] and [row["update"] for row in rows[1]] == [1, 2, 3, 4, 5]


def test_callback_on_a_critic(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    metrics = MetricsCallback()
    PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(64, metrics)
    assert [row["timesteps"] for row in metrics.rows] == [32, 64] and "train/value_loss" in metrics.rows[0]


def test_bad_callbacks() -> None:
    with pytest.raises(ValueError, match="every=0"):
        ResumeCallback("x.zip", every=0)
    with pytest.raises(ValueError, match="Unknown settings"):
        TrainConfig().updated({"speed": 1})
    assert replace(TrainConfig(), seed=3).seed == 3


def test_rows_cut_off_by_a_crash_are_left_out(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "rows.jsonl")
    file.append({"a": 1})
    with file.path.open("a") as stream:
        stream.write('{"a": 2')
    assert file.read() == [{"a": 1}]


# ---------------------------------------------------------------------- LIBERO


def test_libero_from_scratch(tmp_path: Path) -> None:
    arguments = [
        "--from-scratch", "--assets", "light", "--demos", "2", "--sft-steps", "3",
        "--sft-validation-fraction", "0", "--dart", "0",
        "--sft-batch-size", "8", "--action-bins", "32", "--workers", "1", "--image-size", "64", "--total-timesteps", "12",
        "--group-size", "2", "--groups-per-update", "2", "--max-episode-steps", "6", "--eval-initial-states", "1",
        "--eval-temperatures", "0", "--eval-n-envs", "1", "--device", "cpu",
    ]  # fmt: skip
    assert main(["train", *arguments, "--out", str(tmp_path)]) == 0
    results = RunFolder(tmp_path).read("results.json")
    assert results["assets"] == "light" and results["reward"].startswith("libero_object-8, ")
    assert results["modes"]["greedy"]["before"]["n_stages"] >= 3
    assert json.loads((tmp_path / "start/checkpoint/config.json").read_text())["n_action_bins"] == 32
    assert "light assets" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("env", "given", "limit"),
    [
        ("LIBERO/libero_object-8-v0", None, 150),
        ("LIBERO/libero_object-8-v0", 280, 280),
        ("LIBERO/libero_goal-2-v0", None, None),
        ("LIBERO/libero_10-4-v0", None, None),
    ],
)
def test_only_the_default_suite_has_a_shorter_step_limit(env: str, given: int | None, limit: int | None) -> None:
    config = TrainConfig().updated({"env": env, "max_episode_steps": given, "assets": "light"})
    setup = resolve_setup(config, Checkpoint(shipped_start()))
    assert setup.training_steps == limit
    assert ("cut at" in setup.reward_text) == (limit is not None)
