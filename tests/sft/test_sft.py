"""Supervised fine-tuning: it learns, resumes exactly, and its checkpoints load as policies."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from demonstration_files import colour_actions, colour_images, write_demos
from stable_baselines3.common.utils import FloatSchedule

from sb3_tgrpo.cli import main
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.processes import Processes
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.sft.dataset import DemonstrationDataset
from sb3_tgrpo.sft.loop import BestCheckpoint, ParameterEMA, cosine_rate, epoch_order
from sb3_tgrpo.sft.trainer import SETTINGS_FILE, SFT, STATE_FILE

TINY: dict[str, Any] = {"checkpoint": "tiny", "lora": None}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "demos.hdf5", n_demos=10, n_steps=24)


@pytest.fixture(scope="module")
def dataset(file: Path) -> DemonstrationDataset:
    return DemonstrationDataset(file)


def make(dataset: DemonstrationDataset, **kwargs: Any) -> SFT:
    settings = {"learning_rate": 2e-3, "batch_size": 8, "policy_kwargs": TINY, "seed": 1, **kwargs}
    return SFT("OpenVLAPolicy", dataset, **settings)


def parameters(sft: SFT) -> dict[str, th.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in sft.policy.named_parameters()}


def equal(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return set(first) == set(second) and all(th.equal(first[name], second[name]) for name in first)


def load(folder: Path, dataset: DemonstrationDataset) -> OpenVLAPolicy:
    spaces = dataset.observation_space, dataset.action_space
    return OpenVLAPolicy(*spaces, FloatSchedule(0.0), checkpoint=folder, lora=None, value_head=False, gripper="libero")


def observation(colours: list[int], instruction: str, seed: int = 99) -> dict[str, np.ndarray]:
    words = np.zeros((len(colours), 256), np.uint8)
    words[:, : len(instruction)] = list(instruction.encode())
    return {"image": colour_images(np.array(colours), np.random.default_rng(seed)), "instruction": words}


# ---------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def trained(dataset: DemonstrationDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[SFT, Path]:
    """A policy trained on the colours, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    sft = make(dataset, batch_size=16, ema_decay=0.95, center_images=True, tensorboard_log=str(folder / "log"))
    sft.learn(150, eval_every=50)
    return sft, sft.save_checkpoint(folder / "checkpoint", command="made by a test")


def test_learns_to_read_images(trained: tuple[SFT, Path]):
    sft, _ = trained
    first, last = sft.history[0], sft.history[-1]
    assert last["token_accuracy"] > 0.97 and last["loss"] < 0.3 and first["loss"] > last["loss"]
    assert last["l1_x"] < 0.05 and last["l1_gripper"] < 0.05
    assert last["entropy_x"] < 0.5


def test_checkpoint_is_a_policy_that_acts_right(trained: tuple[SFT, Path], dataset: DemonstrationDataset):
    sft, folder = trained
    policy = load(folder, dataset)
    assert policy.unnorm_key == "libero_object" and policy.conventions.assets == "light"
    colours = [0, 1, 2, 3, 3, 2, 1, 0]
    obs = observation(colours, dataset.instructions[0])
    actions, _ = policy.predict(obs, deterministic=True)
    expected = colour_actions()[colours]
    assert np.abs(actions - expected)[:, [0, 2]].mean() < 0.1 and np.mean(actions[:, 6] == expected[:, 6]) >= 7 / 8
    # Constant dimensions are exact, whatever is sampled.
    sampled, _ = policy.predict(obs, deterministic=False)
    for played in (actions, sampled):
        assert np.array_equal(played[:, [1, 3, 4, 5]], expected[:, [1, 3, 4, 5]].astype(np.float32))
    # The written weights are the averaged ones, bit by bit.
    with sft.averaged_weights():
        ours = parameters(sft)
    theirs = dict(policy.named_parameters())
    assert all(th.equal(ours[name], theirs[name]) for name in theirs)
    assert not equal(ours, parameters(sft))


def test_checkpoint_records_its_making(trained: tuple[SFT, Path], dataset: DemonstrationDataset):
    sft, folder = trained
    config = json.loads((folder / "config.json").read_text())
    ours = config["sb3_tgrpo"]
    assert (ours["assets"], ours["preprocessing"], ours["patch_merge"]) == ("light", "area", 2)
    conventions = {"gripper": "libero", "image_key": "agentview_rgb", "image_size": [64, 64], "unnorm_key": "libero_object"}
    assert {name: ours[name] for name in conventions} == conventions
    record = ours["sft"]
    assert record["command"] == "made by a test" and record["base"] == "tiny" and record["updates"] == 150
    assert record["demonstrations"]["sha256"] == dataset.fingerprint and record["demonstrations"]["n_demonstrations"] == 10
    assert record["settings"]["learning_rate"] == 2e-3 and record["validation"] == sft.history[-1]
    statistics = {"libero_object": dataset.statistics}
    assert config["norm_stats"] == statistics == json.loads((folder / "dataset_statistics.json").read_text())


def test_the_weight_decay_that_is_used_is_recorded(dataset: DemonstrationDataset):
    sft = make(dataset, weight_decay=0.5)
    own = make(dataset, policy_kwargs={**TINY, "optimizer_kwargs": {"weight_decay": 0.3}})
    built = SFT(own.policy, dataset, batch_size=8, weight_decay=0.3)
    for made, decay in ((sft, 0.5), (own, 0.3), (built, 0.3)):
        assert made.policy.optimizer.param_groups[0]["weight_decay"] == made._fixed_settings["weight_decay"] == decay


def test_tensorboard(trained: tuple[SFT, Path]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(trained[1].parent / "log" / "SFT_1")).Reload()
    tags = log.Tags()["scalars"]
    assert {"train/loss", "train/token_accuracy", "train/grad_norm", "val/loss", "val/l1_yaw", "val/entropy_x"} <= set(tags)
    assert [event.step for event in log.Scalars("val/loss")] == [50, 100, 150]


def test_validation_by_hand(dataset: DemonstrationDataset):
    sft = make(dataset)
    frames = np.array([3, 40, 41])
    metrics = sft.validate(frames)
    policy, model = sft.policy, sft.policy.model
    pixels = model.pixel_values(model.preprocess(th.from_numpy(dataset.images(frames))))
    ids = [sft._prompt_ids[dataset.instructions[0]]] * 3
    tokens = th.from_numpy(policy.scale_action(dataset.actions[frames]))
    with th.no_grad():
        log_prob = model.action_logits(pixels, ids, tokens).log_softmax(-1).numpy().astype(np.float64)
    begin = model.config.action_vocab_begin
    chosen = [[log_prob[i, k, tokens[i, k] - begin] for k in range(7)] for i in range(3)]
    assert metrics["loss"] == pytest.approx(-np.mean(chosen), rel=1e-6)
    greedy = policy.unscale_action(log_prob.argmax(-1) + begin)
    assert metrics["l1_z"] == pytest.approx(np.abs(greedy - dataset.actions[frames])[:, 2].mean(), rel=1e-6)
    assert metrics["entropy_y"] == pytest.approx(-np.sum(np.exp(log_prob) * log_prob, -1).mean(0)[1], rel=1e-5)


# ---------------------------------------------------------------------- exactness


def test_resumed_run_is_the_uninterrupted_one(dataset: DemonstrationDataset, tmp_path: Path):
    settings = {"augmentation": True, "ema_decay": 0.9, "warmup_steps": 2}
    whole = make(dataset, **settings).learn(8, eval_every=3)
    make(dataset, **settings).learn(8, eval_every=3, folder=tmp_path, stop_at=4)
    resumed = make(dataset, **settings)
    resumed.learn(8, eval_every=3, folder=tmp_path, resume=True)
    assert resumed.num_updates == 8 and equal(parameters(whole), parameters(resumed))
    assert whole.average is not None and resumed.average is not None
    assert equal(whole.average.values, resumed.average.values)
    without_time = [{k: v for k, v in entry.items() if k != "seconds"} for entry in resumed.history if entry["step"] != 4]
    assert without_time == [{k: v for k, v in entry.items() if k != "seconds"} for entry in whole.history]
    assert resumed.seconds > 0


def test_seed_decides(dataset: DemonstrationDataset):
    first, again, other = (make(dataset, seed=seed, augmentation=True).learn(3) for seed in (1, 1, 2))
    assert equal(parameters(first), parameters(again)) and not equal(parameters(first), parameters(other))


def test_micro_batches_do_not_change_the_update(dataset: DemonstrationDataset):
    # SGD: Adam's first step would turn rounding noise of tiny gradients into whole steps.
    kwargs = {**TINY, "optimizer_class": th.optim.SGD}
    whole, pieces = (
        make(dataset, augmentation=True, micro_batch_size=size, policy_kwargs=kwargs, learning_rate=0.1).learn(2)
        for size in (None, 3)
    )
    for name, tensor in parameters(whole).items():
        assert th.allclose(tensor, parameters(pieces)[name], atol=1e-6), name


def test_every_parameter_moves_but_the_unused(dataset: DemonstrationDataset):
    sft = make(dataset)
    before = parameters(sft)
    sft.learn(2)
    still = {name for name, tensor in parameters(sft).items() if th.equal(tensor, before[name])}
    unused = ("blocks.1.", "featurizer.norm.", "attn_pool.")
    assert still == {name for name in before if "vision_backbone" in name and any(part in name for part in unused)}


def test_lora_trains_the_adapter_alone_and_is_merged(dataset: DemonstrationDataset, tmp_path: Path):
    sft = make(dataset, policy_kwargs={"checkpoint": "tiny", "lora": "upstream"})
    before = parameters(sft)
    sft.learn(3)
    for name, tensor in parameters(sft).items():
        assert "lora_" in name or th.equal(tensor, before[name])
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in parameters(sft).items())
    policy = load(sft.save_checkpoint(tmp_path), dataset)
    obs = observation([0, 1, 2, 3], dataset.instructions[0])
    tensors = {key: th.from_numpy(value) for key, value in obs.items()}
    tokens = th.from_numpy(sft.policy.scale_action(colour_actions()))
    with th.no_grad():
        ours, theirs = (p.action_log_prob(tensors, tokens)[0] for p in (sft.policy, policy))
    assert th.allclose(ours, theirs, atol=1e-4)


def test_early_stopping_returns_to_the_best(dataset: DemonstrationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sft = make(dataset)
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    kept: list[dict[str, th.Tensor]] = []

    def validate(frames: Any = None) -> dict[str, float]:
        kept.append(parameters(sft))
        return {"loss": next(losses)}

    monkeypatch.setattr(sft, "validate", validate)
    sft.learn(10, eval_every=1, patience=2)
    assert sft.num_updates == 4 and equal(parameters(sft), kept[1]) and not equal(kept[1], kept[3])
    record = json.loads((sft.save_checkpoint(tmp_path) / "config.json").read_text())["sb3_tgrpo"]["sft"]
    assert record["updates"] == 2 and record["validation"] == sft.history[1]


def test_patience_given_on_resuming_counts_from_there(
    dataset: DemonstrationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([1.0, 2.0, 2.5, 2.4, 3.0, 2.2, 2.3, 2.4])
    kept: dict[int, dict[str, th.Tensor]] = {}

    def validate(sft: SFT, frames: Any = None) -> dict[str, float]:
        kept[sft.num_updates] = parameters(sft)
        return {"loss": next(losses)}

    monkeypatch.setattr(SFT, "validate", validate)
    make(dataset).learn(12, eval_every=1, folder=tmp_path, stop_at=4)  # three validations without progress, nothing kept
    sft = make(dataset).learn(12, eval_every=1, folder=tmp_path, resume=True, patience=2)
    assert sft.num_updates == 8 and equal(parameters(sft), kept[6])
    again = make(dataset).learn(12, eval_every=1, folder=tmp_path, resume=True, patience=2)
    assert equal(parameters(again), kept[6])
    record = json.loads((again.save_checkpoint(tmp_path / "out") / "config.json").read_text())["sb3_tgrpo"]["sft"]
    assert record["updates"] == 6 and record["validation"]["loss"] == 2.2


def test_the_best_weights_belong_to_the_best_validation():
    best = BestCheckpoint()
    for patience, loss in ((3, 2.0), (None, 1.0)):  # trained on without patience: the better weights were not kept
        best.begin(patience)
        best.offer({"step": 1, "loss": loss}, lambda: {"w": th.zeros(1)})
    best.begin(3)
    best.offer({"step": 3, "loss": 1.5}, lambda: {"w": th.ones(1)})
    assert (best.entry, best.weights["w"].item(), best.waited) == ({"step": 3, "loss": 1.5}, 1.0, 0)
    resumed = BestCheckpoint()
    resumed.load_state(best.state())
    assert (resumed.entry, resumed.loss, resumed.waited) == ({"step": 3, "loss": 1.5}, 1.5, 0)


def test_callback_stops(dataset: DemonstrationDataset):
    assert make(dataset).learn(9, eval_every=2, callback=lambda sft: sft.num_updates < 4).num_updates == 4


def test_schedule_order_and_average():
    assert [cosine_rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.505, 0.01])
    assert sorted(epoch_order(9, 0, 1)) == list(range(9)) and not np.array_equal(epoch_order(9, 0, 1), epoch_order(9, 0, 2))
    parameter = th.nn.Parameter(th.zeros(1))
    average = ParameterEMA({"p": parameter}, decay=0.5)
    parameter.data.fill_(1.0)
    average.update(1)  # min(0.5, 2 / 11) of the old value 0 is kept
    assert float(average.values["p"]) == pytest.approx(9 / 11)
    average.update(100)
    assert float(average.values["p"]) == pytest.approx(10 / 11)
    with average.applied({"p": parameter}):
        assert float(parameter.detach()) == pytest.approx(10 / 11)
    assert float(parameter.detach()) == 1.0


def test_share_covers_every_row_once():
    processes = Processes(th.device("cpu"))
    processes.world = 3
    for n, chunk in ((10, None), (10, 2), (3, 4), (1, None)):
        rows: list[int] = []
        for processes.rank in range(3):
            for piece in processes.share(n, chunk):
                rows += range(n)[piece]
        assert sorted(rows) == list(range(n))


def test_a_single_process_goes_on_after_finishing():
    Processes(th.device("cpu")).finish()


@pytest.mark.slow
def test_two_processes_make_the_same_update(file: Path, tmp_path: Path):
    script = (
        "import sys, torch as th; th.set_num_threads(1)\n"
        "from sb3_tgrpo.sft.trainer import SFT; from sb3_tgrpo.sft.dataset import DemonstrationDataset\n"
        "kwargs = dict(checkpoint='tiny', lora=None, optimizer_class=th.optim.SGD)\n"
        "sft = SFT('OpenVLAPolicy', DemonstrationDataset(sys.argv[1]), 0.1, 8, policy_kwargs=kwargs, device='cpu')\n"
        "sft.learn(2); sft.save_checkpoint(sys.argv[2]); sft.processes.finish()\n"
    )
    (tmp_path / "train.py").write_text(script)
    run = [str(tmp_path / "train.py"), str(file)]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29577"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, *run, str(tmp_path / "one")], check=True)
    subprocess.run([sys.executable, *launch, *run, str(tmp_path / "two")], check=True, env=environment)
    dataset = DemonstrationDataset(file)
    one, two = (load(tmp_path / name, dataset) for name in ("one", "two"))
    for (name, first), (_, second) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert th.allclose(first, second, atol=1e-6), name


# ---------------------------------------------------------------------- bad input


def test_resume_from_another_configuration(dataset: DemonstrationDataset, tmp_path: Path):
    make(dataset).learn(2, folder=tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings .learning_rate was 0.002, is 0.001."):
        make(dataset, learning_rate=1e-3).learn(2, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="total_steps was 2, is 3"):
        make(dataset).learn(3, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="demonstrations was"):
        make(DemonstrationDataset(dataset.demonstrations[0].file, max_demonstrations=9)).learn(2, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a training already"):
        make(dataset).learn(2, folder=tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        make(dataset).learn(2, resume=True)
    (tmp_path / SETTINGS_FILE).unlink()
    with pytest.raises(ValueError, match=r"training_settings\.json, which records its settings, is missing"):
        make(dataset).learn(2, folder=tmp_path, resume=True)


def test_a_base_recorded_by_the_fingerprint_of_an_older_version(dataset: DemonstrationDataset, tmp_path: Path):
    make(dataset).learn(2, folder=tmp_path)
    record = json.loads((tmp_path / SETTINGS_FILE).read_text())
    again = make(dataset)
    again.policy.base_identity_by_ends = b"\x07" * 32
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(record | {"base": "08" * 32}))
    with pytest.raises(ValueError, match="base was '0808"):
        again.learn(2, folder=tmp_path, resume=True)
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(record | {"base": "07" * 32}))
    with pytest.warns(UserWarning, match="cannot see the middle of a file"):
        again.learn(2, folder=tmp_path, resume=True)
    assert again.num_updates == 2


def test_a_damaged_state_counts_as_none(dataset: DemonstrationDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = make(dataset).learn(2)
    make(dataset).learn(2, folder=tmp_path)
    for content in ((tmp_path / STATE_FILE).read_bytes()[:1000], b"", b"no state"):
        (tmp_path / STATE_FILE).write_bytes(content)
        caplog.clear()
        again = make(dataset).learn(2, folder=tmp_path, resume=True)
        assert "training_state.pt is damaged" in caplog.text and "starts anew" in caplog.text
        assert equal(parameters(again), parameters(whole))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: it must be above 0"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"batch_size": 10_000}, "exceeds the 216 training frames"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: it must be above 0 and below 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: it must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1: it must be at least 0"),
        ({"schedule": "linear"}, "schedule='linear': it must be one of 'cosine', 'constant'"),
        ({"statistics": "mine"}, "statistics='mine': it must be one of 'data', 'checkpoint'"),
        ({"validation_fraction": 0.99}, "empty split"),
        ({"policy_kwargs": {**TINY, "gripper": "none"}}, "gripper='none', the dataset gripper='libero'"),
        ({"policy_kwargs": {"checkpoint": "tiny"}, "center_images": True}, "needs lora=None"),
    ],
)
def test_bad_settings(dataset: DemonstrationDataset, kwargs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(dataset, **kwargs)


def test_bad_policy_and_learn_arguments(dataset: DemonstrationDataset):
    with pytest.raises(ValueError, match="policy must be"):
        SFT("MlpPolicy", dataset)
    policy = make(dataset).policy
    with pytest.raises(ValueError, match=r"weight_decay=0.5 has no effect .* optimizer has 0.01: pass weight_decay=0.01"):
        SFT(policy, dataset, batch_size=8, weight_decay=0.5)
    sft = make(dataset, validation_fraction=0.0)
    with pytest.raises(ValueError, match="patience=1 needs validation data"):
        sft.learn(2, patience=1)
    with pytest.raises(ValueError, match="total_steps=0: it must be at least 1"):
        sft.learn(0)
    with pytest.raises(ValueError, match="no validation frames"):
        sft.validate()


def test_statistics_of_the_checkpoint(trained: tuple[SFT, Path], tmp_path: Path):
    _, folder = trained
    kwargs = {"checkpoint": str(folder), "lora": None}
    varied = DemonstrationDataset(write_demos(tmp_path / "varied.hdf5", n_demos=4))
    varied.actions[:, 1] = np.linspace(-1, 1, len(varied))
    with pytest.raises(ValueError, match=r"zero range \(q01 == q99\) for dimension\(s\) \[1\]"):
        make(varied, policy_kwargs=kwargs, statistics="checkpoint")
    same = DemonstrationDataset(write_demos(tmp_path / "same.hdf5", n_demos=4, seed=5))
    sft = make(same, policy_kwargs=kwargs, statistics="checkpoint")
    assert sft.policy.model.statistics()["num_transitions"] == 240  # those of the first training
    assert sft.validate()["token_accuracy"] > 0.9


def test_data_for_another_action_space(trained: tuple[SFT, Path], dataset: DemonstrationDataset, tmp_path: Path):
    import h5py

    path = write_demos(tmp_path / "joints.hdf5")
    with h5py.File(path, "r+") as handle:
        for demo in handle["data"].values():
            actions = demo["actions"][:, :6] * 3
            del demo["actions"]
            demo["actions"] = actions
    with pytest.raises(ValueError, match="another action space"):
        DemonstrationDataset(path)
    joints = DemonstrationDataset(path, gripper="none")
    with pytest.raises(ValueError, match=r"6 dimensions.*7|7.*6"):
        make(joints, policy_kwargs={"checkpoint": str(trained[1]), "lora": None}, statistics="checkpoint")
    # A checkpoint learns it all the same, under statistics of its own.
    assert make(joints, policy_kwargs={"checkpoint": "tiny", "lora": None}).learn(1).policy.n_tokens == 6


def test_image_sizes(dataset: DemonstrationDataset, tmp_path: Path):
    small = DemonstrationDataset(write_demos(tmp_path / "small.hdf5", size=32))
    with pytest.raises(ValueError, match="at least 64x64"):
        make(small)
    policy = make(dataset).policy
    with pytest.raises(ValueError, match="reads 64 pixels, the demonstrations have 32x32"):
        SFT(policy, small)
    policy.model.config = dataclasses.replace(policy.model.config, pipeline="libero")
    with pytest.raises(ValueError, match="reads 256x256 frames, the demonstrations have 64x64"):
        SFT(policy, dataset)


# ---------------------------------------------------------------------- command line


def test_command_line(file: Path, dataset: DemonstrationDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["sft", "--data", str(file), "--checkpoint", "tiny", "--steps", "4", "--batch-size", "8", "--eval-every", "2"]
    command += ["--out", str(tmp_path / "run"), "--tensorboard", "--quiet"]
    assert main(command) == 0
    assert "4 updates" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "validations.json").read_text())) == 2
    assert load(tmp_path / "run", dataset).unnorm_key == "libero_object"
    assert main(command) == 1 and "pass resume=True" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--lora-rank", "4"]) == 1 and "needs an adapter" in capsys.readouterr().err
    assert main([*command, "--threads", "0"]) == 1 and "threads=0: it must be at least 1" in capsys.readouterr().err


def test_flags_of_the_version_before_work_with_a_warning(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = ["--lr", "1e-3", "--ema", "0.9", "--validation", "0", "--max-demos", "3", "--warmup", "1", "--augment"]
    command = ["sft", "--data", str(file), "--checkpoint", "tiny", "--steps", "1", "--batch-size", "8", "--quiet"]
    assert main([*command, *old, "--out", str(tmp_path)]) == 0
    assert "--ema is now --ema-decay" in capsys.readouterr().err
    record = json.loads((tmp_path / "config.json").read_text())["sb3_tgrpo"]["sft"]
    wanted = {"learning_rate": 1e-3, "ema_decay": 0.9, "validation_fraction": 0.0, "warmup_steps": 1, "augmentation": True}
    assert record["demonstrations"]["n_demonstrations"] == 3
    assert {name: record["settings"][name] for name in wanted} == wanted


def test_command_line_takes_the_folder_for_itself(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["sft", "--data", str(file), "--checkpoint", "tiny", "--steps", "1", "--batch-size", "8", "--quiet"]
    with RunFolder(tmp_path).locked():
        assert main([*command, "--action-bins", "32", "--out", str(tmp_path)]) == 1
    assert "in use by another process" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert main([*command, "--out", str(tmp_path)]) == 0


def test_command_line_tells_of_a_gradient_that_is_not_finite(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(th.nn.utils, "clip_grad_norm_", lambda *args: th.tensor(float("nan")))
    command = ["sft", "--data", str(file), "--checkpoint", "tiny", "--steps", "1", "--batch-size", "8", "--quiet"]
    assert main([*command, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sb3-tgrpo: The gradient is not finite at update 1") and "lower the learning_rate" in error
