"""Each check with the fault planted that it guards against, and without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th

from sb3_tgrpo.cli import main
from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.doctor import checks, installation, memory, simulator
from sb3_tgrpo.doctor import policy as doctor_policy
from sb3_tgrpo.doctor.checks import run_checks
from sb3_tgrpo.doctor.finding import Check, DoctorContext, Found, MemoryPlan, all_passed, to_dict
from sb3_tgrpo.evaluation.base_policy import BasePolicyReport
from sb3_tgrpo.evaluation.protocol import Protocol
from sb3_tgrpo.openvla import load_openvla, save_openvla


@pytest.fixture(scope="module")
def light() -> DoctorContext:
    return DoctorContext(assets="light", checkpoint_name="tiny", device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a folder of several shards, with statistics of one suite."""
    statistics = {"libero_object": {"action": {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 7, "mask": [True] * 6 + [False]}}}
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_openvla(load_openvla("tiny", device="cpu"), folder, norm_stats=statistics, max_shard_bytes=1_000_000)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def of(folder: Path, **kwargs: Any) -> DoctorContext:
    return DoctorContext(assets="light", checkpoint_name=str(folder), device="cpu", **kwargs)


# ---------------------------------------------------------------------- installation


def test_mujoco(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.check_mujoco(light).status == "ok"
    import mujoco

    monkeypatch.setattr(mujoco, "__version__", "3.8.1")
    finding = installation.check_mujoco(light)
    assert finding.status == "failed" and "3.8.1" in finding.found and "mujoco==3.3.2" in finding.remedy


def test_versions(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.check_versions(light).status == "ok"
    real = installation.version
    monkeypatch.setattr(installation, "version", lambda name: "1.5.2" if name == "robosuite" else real(name))
    finding = installation.check_versions(light)
    assert finding.status == "failed" and "robosuite 1.5.2, needed ==1.4.0" in finding.found

    def without_libero(name: str) -> str:
        if name == "hf-libero":
            raise installation.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(installation, "version", without_libero)
    finding = installation.check_versions(light)
    assert finding.status == "note" and "hf-libero is not installed" in finding.found


def test_gl(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.check_gl(light).status == "ok"
    import sb3_tgrpo.envs.libero.gl as gl

    with monkeypatch.context() as patch:
        patch.setattr(gl, "egl_device_count", lambda: 2)
        patch.setenv("MUJOCO_GL", "egl")
        patch.setenv("PYOPENGL_PLATFORM", "egl")
        patch.setenv("MUJOCO_EGL_DEVICE_ID", "7")
        finding = installation.check_gl(light)
        assert finding.status == "failed" and "MUJOCO_EGL_DEVICE_ID=7" in finding.found and "apt-get" not in finding.remedy
    monkeypatch.setattr(gl, "has_egl_device", lambda: False)
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    finding = installation.check_gl(light)
    assert finding.status == "failed" and "apt-get install" in finding.remedy


def test_torchvision_of_another_torch(light: DoctorContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert installation.check_torchvision(light).status == "ok"
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = installation.check_torchvision(light)
    assert finding.status == "failed" and "nms" in finding.found and finding.remedy == "pip uninstall torchvision"


def test_api_key_is_never_shown(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
    finding = installation.check_api_key(light)
    assert finding.status == "ok" and "secret" not in json.dumps(to_dict([finding]))
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert installation.check_api_key(light).status == "note"


# ---------------------------------------------------------------------- simulator


def test_assets(light: DoctorContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert simulator.check_asset_files(light).status == "ok"
    monkeypatch.setenv("SB3_TGRPO_LIBERO_ASSETS", str(tmp_path))
    finding = simulator.check_asset_files(DoctorContext())
    assert finding.status == "failed" and "file(s) missing" in finding.found


def test_files_that_vanished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sb3_tgrpo.envs.libero.assets import Assets

    subject = DoctorContext()
    subject.found_assets = Assets("full", tmp_path)
    finding = simulator.check_asset_files(subject)
    assert finding.status == "failed" and "missing" in finding.found and ".xml" in finding.found


def test_dark_frame(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulator.check_brightness(light).status == "ok"

    class Dark:
        """As MuJoCo 3.8 draws it: 97 instead of 135."""

        def reset(self, **kwargs: Any) -> Any:
            return {"image": np.full((128, 128, 3), 97, np.uint8)}, {}

        def close(self) -> None: ...

    subject = DoctorContext(assets="light")
    monkeypatch.setattr(subject, "make_env", lambda *args, **kwargs: Dark(), raising=False)
    finding = simulator.check_brightness(subject)
    assert finding.status == "failed" and "mean 97.0" in finding.found and "MuJoCo" in finding.remedy


@pytest.mark.full_assets
def test_frame_of_full_assets() -> None:
    assert simulator.check_brightness(DoctorContext(assets="full")).status == "ok"


def test_parity(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulator.check_parity(light).status == "ok"
    states = np.random.default_rng(0).normal(size=(6, 10))
    monkeypatch.setattr(simulator, "libero_states", lambda subject: states)
    for row, where in ((0, "in the initial state already"), (3, "from step 3 on")):
        other = states.copy()
        other[row:, 4] += 1e-9
        monkeypatch.setattr(simulator, "our_states", lambda subject, other=other: other)
        finding = simulator.check_parity(light)
        assert finding.status == "failed" and where in finding.found


# ---------------------------------------------------------------------- checkpoint


def test_complete_checkpoint(saved: Path) -> None:
    subject = of(saved)
    findings = run_checks(subject, doctor_policy.FILE_CHECKS)
    assert [(finding.check, finding.status) for finding in findings if finding.status != "ok"] == [("conventions", "note")]
    assert "image_key=agentview_rgb" in findings[2].found and "libero_object" in findings[3].found


def _remove_shard(folder: Path) -> None:
    (folder / "model-00002-of-00004.safetensors").unlink()


def _truncate_shard(folder: Path) -> None:
    path = folder / "model-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    path = folder / "model-00001-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def _remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_shard, "lacks model-00002-of-00004.safetensors"),
        (_truncate_shard, "model-00003-of-00004.safetensors is truncated"),
        (_cut_header, "model-00001-of-00004.safetensors is truncated"),
        (_remove_tokenizer, "lacks tokenizer.json"),
        (_remove_weights, "neither model.safetensors.index.json nor model.safetensors"),
    ],
)
def test_damaged_checkpoint(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    finding = doctor_policy.check_checkpoint(of(copy))
    assert finding.status == "failed" and message in finding.found and "again" in finding.remedy


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    subject = DoctorContext(assets="light", checkpoint_name="openvla/openvla-7b", device="cpu")
    for check in (doctor_policy.check_checkpoint, doctor_policy.check_sight, doctor_policy.check_tokenizer):
        finding = check(subject)
        assert finding.status == "not checked" and "not on this machine" in finding.found


def test_checkpoint_for_other_assets(saved: Path) -> None:
    from sb3_tgrpo.envs.libero.assets import Assets

    subject = DoctorContext(assets="auto", checkpoint_name=str(saved))
    subject.found_assets = Assets("light", Path())
    finding = doctor_policy.check_fit(subject)
    assert finding.status == "failed" and "trained with LIBERO's own" in finding.found


def test_unnorm_key(copy: Path) -> None:
    statistics = json.loads((copy / "dataset_statistics.json").read_text())
    assert (
        "the environment is of libero_goal" in doctor_policy.check_unnorm_key(of(copy, env_id="LIBERO/libero_goal-0-v0")).found
    )
    broken = json.loads(json.dumps(statistics))
    broken["libero_object"]["action"]["q99"][2] = -3.0
    (copy / "dataset_statistics.json").write_text(json.dumps(broken))
    assert doctor_policy.check_unnorm_key(of(copy)).status == "failed"
    (copy / "dataset_statistics.json").write_text(json.dumps({"bridge": statistics["libero_object"], "fractal": {}}))
    finding = doctor_policy.check_unnorm_key(of(copy))
    assert finding.status == "failed" and "bridge, fractal" in finding.remedy


def test_statistics_of_another_robot(copy: Path) -> None:
    statistics = json.loads((copy / "dataset_statistics.json").read_text())
    (copy / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": statistics["libero_object"]}))
    finding = doctor_policy.check_unnorm_key(of(copy))
    assert finding.status == "failed" and "bridge_orig" in finding.found and "--unnorm-key: bridge_orig" in finding.remedy
    assert doctor_policy.check_unnorm_key(of(copy, unnorm_key="bridge_orig")).status == "note"


def _make_oft(folder: Path) -> str:
    (folder / "action_head--150000_checkpoint.pt").write_bytes(b"")
    return "OpenVLA-OFT's (action_head--150000_checkpoint.pt)"


def _make_run_folder(folder: Path) -> str:
    shutil.copytree(folder, folder / "checkpoint")
    (folder / "config.json").write_text("{}")
    return f"did you mean '{folder / 'checkpoint'}'?"


@pytest.mark.parametrize("change", [_make_oft, _make_run_folder])
def test_what_is_no_checkpoint_of_openvla_fails_in_one_row(copy: Path, change: Callable[[Path], str]) -> None:
    reason = change(copy)
    findings = run_checks(of(copy), doctor_policy.POLICY_CHECKS)
    assert findings[0].status == "failed" and reason in findings[0].found
    assert {(finding.status, finding.found) for finding in findings[1:]} == {("not checked", "see the row of the checkpoint")}


def test_openvla_oft_is_refused_by_its_name_without_a_download() -> None:
    finding = doctor_policy.check_checkpoint(of(Path("moojink/openvla-7b-oft-finetuned-libero-goal")))
    assert finding.status == "failed" and "its name" in finding.found


def test_another_tokenizer(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    pieces = content["model"]["vocab"]
    soup, sauce = (next(i for i, (piece, _) in enumerate(pieces) if piece == word) for word in ("▁soup", "▁sauce"))
    pieces[soup], pieces[sauce] = pieces[sauce], pieces[soup]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    finding = doctor_policy.check_tokenizer(of(copy))
    assert finding.status == "failed" and "recorded were [1, 260" in finding.found


# ---------------------------------------------------------------------- the policy at work


def test_policy_at_work(light: DoctorContext) -> None:
    for check in (doctor_policy.check_sight, doctor_policy.check_density, doctor_policy.check_ratio):
        assert check(light).status == "ok", check


def test_blind_policy(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    model = light.policy.model
    project = model.project
    monkeypatch.setattr(model, "project", lambda pixels: th.zeros_like(project(pixels)))
    finding = doctor_policy.check_sight(light)
    assert finding.status == "failed" and "does not see" in finding.remedy


def test_log_probabilities_of_another_temperature(light: DoctorContext, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = light.policy
    sample = policy.sample_actions

    def forgetful(obs: Any) -> Any:
        tokens, _ = sample(obs)
        monkeypatch.setattr(policy, "temperature", 1.0)
        recorded, _ = policy._score(policy.model, policy._patches(obs["image"]), policy._prompts(obs, 4), tokens)[:2]
        monkeypatch.setattr(policy, "temperature", 0.7)
        return tokens, recorded

    monkeypatch.setattr(policy, "sample_actions", forgetful)
    assert doctor_policy.check_density(light).status == "failed"
    assert doctor_policy.check_ratio(light).status == "failed"


# ---------------------------------------------------------------------- memory


def test_memory_of_openvla_7b() -> None:
    """The parts by hand: 7,541,237,184 parameters, 81,111,040 adapted, 880 frames of 256 tokens, 298 positions."""
    plan = MemoryPlan(micro_batch_size=8, dtype="bfloat16", gradient_checkpointing=True)
    parts = memory.memory_parts(memory.upstream_config(), plan, "cpu", "libero_spatial")
    assert parts["weights"] == 2 * 7_541_237_184 and parts["training state"] == 16 * 81_111_040
    assert parts["image embeddings"] == 880 * 256 * 4096 * 2 and parts["reference copy"] == 0
    assert parts["key-value cache"] == pytest.approx(4 * 298 * 2**19, rel=0.01)
    assert sum(parts.values()) == pytest.approx(19.9e9, rel=0.02)
    four_bit = memory.memory_parts(
        memory.upstream_config(),
        MemoryPlan(micro_batch_size=8, dtype="bfloat16", quantization="4bit"),
        "cpu",
        "libero_spatial",
    )
    assert four_bit["weights"] == pytest.approx(5.5e9, rel=0.03)
    upstream = memory.memory_parts(memory.upstream_config(), MemoryPlan(lora="upstream"), "cpu", "libero_spatial")
    assert upstream["training state"] == 16 * 110_828_288
    assert four_bit["activations"] > 10 * parts["activations"]
    assert parts["vision activations"] == 0 and upstream["cached images"] == 880 * 224 * 224 * 3


def test_memory_with_a_trained_vision_side() -> None:
    """By hand: 261 tokens of 23 blocks of width 1024, 256 of 26 blocks of width 1152, and the projector."""
    config = memory.upstream_config()
    per_image = 261 * 23 * (10 * 1024 + 2 * 4096) + 256 * 26 * (10 * 1152 + 2 * 4304) + 256 * (2176 + 2 * 8704 + 2 * 4096)
    for lora, checkpointing in (("upstream", False), ("upstream", True), (None, False)):
        plan = MemoryPlan(micro_batch_size=16, dtype="bfloat16", lora=lora, gradient_checkpointing=checkpointing)
        parts = memory.memory_parts(config, plan, "cpu", "libero_spatial")
        assert parts["vision activations"] == 16 * 2 * per_image


def test_vision_activations_are_what_torch_keeps() -> None:
    model = load_openvla("tiny", device="cpu").requires_grad_(True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, th.Tensor] = {}

    def keep(tensor: th.Tensor) -> th.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with th.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.project(th.zeros(4, 6, model.config.image_size, model.config.image_size))
    found = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
    assert 4 * 4 * memory.vision_activations(model) == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_memory_of_full_training_follows_the_precision(dtype: str, width: int) -> None:
    """Weights, gradient and both moments are of one precision."""
    plan = MemoryPlan(micro_batch_size=8, dtype=dtype, lora=None)
    parts = memory.memory_parts(memory.upstream_config(), plan, "cpu", "libero_spatial")
    assert parts["weights"] + parts["training state"] == 4 * width * 7_541_237_184
    assert parts["reference copy"] == parts["weights"]


@pytest.mark.parametrize("name", ["group_size", "parallel_groups", "micro_batch_size", "n_steps"])
@pytest.mark.parametrize("value", [0, -8, 1.5, True])
def test_a_plan_of_no_size_is_refused(name: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a positive integer.*got {value}"):
        MemoryPlan(**{name: value})
    if type(value) is int:
        assert main(["doctor", "--plan", f"--{name.replace('_', '-')}", str(value)]) == 1
        assert f"{name} must be a positive integer" in capsys.readouterr().err


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: (16e9, "the GPU"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    plan = MemoryPlan(micro_batch_size=8, dtype="bfloat16", gradient_checkpointing=True)
    upstream = "openvla/openvla-7b-finetuned-libero-object"
    finding = memory.check_memory(DoctorContext(checkpoint_name=upstream, device="cpu", plan=plan))
    assert finding.status == "failed" and "the GPU has 16.0 GB free" in finding.found and "4bit" in finding.remedy
    finding = memory.check_memory(DoctorContext(checkpoint_name="tiny", device="cpu", plan=plan))
    assert finding.status == "ok"


# ---------------------------------------------------------------------- all together


def test_a_check_that_crashes_is_a_failure() -> None:
    def crash(subject: DoctorContext) -> Found:
        raise ZeroDivisionError("on purpose")

    findings = run_checks(DoctorContext(), [Check("steady", lambda subject: ("ok", "fine", "")), Check("crash", crash)])
    assert [finding.status for finding in findings] == ["ok", "failed"] and not all_passed(findings)
    assert "ZeroDivisionError: on purpose" in findings[1].found
    assert run_checks(DoctorContext(env_id="CartPole-v1"), [simulator.check_parity])[0].status == "failed"


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("OpenGL", "MuJoCo", "checkpoint", "memory")
    monkeypatch.setattr(checks, "CHECKS", tuple(check for check in checks.CHECKS if check.name in names))
    arguments = ["doctor", "--assets", "light", "--checkpoint", "tiny", "--plan", "--device", "cpu"]
    assert main(arguments) == 0
    assert "no check failed" in capsys.readouterr().out
    import mujoco

    monkeypatch.setattr(mujoco, "__version__", "3.8.1")
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert "1 of 4 checks failed" in text and "remedy" in text
    assert main([*arguments, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False and [finding["check"] for finding in content["findings"]] == list(names)


def test_start_policy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "CHECKS", ())
    seen: dict[str, Any] = {}

    def describe(policy: Any, env: Any, protocol: Protocol, **kwargs: Any) -> BasePolicyReport:
        made = env()
        seen.update(kwargs, protocol=protocol, image=made.observation_space["image"].shape)
        seen.update(noise=made.unwrapped.start_noise, joint_noise=made.unwrapped.joint_noise)
        made.close()
        return BasePolicyReport([True, False], [[True, False], [True, True]], {"x": 0.5}, (10.0, 12.0), 0.8)

    monkeypatch.setattr("sb3_tgrpo.evaluation.base_policy.describe_base_policy", describe)
    arguments = ["doctor", "--policy", "tiny", "--assets", "light", "--n-initial-states", "2", "--temperature", "0.8"]
    assert main([*arguments, "--start-noise", "0.02", "--n-envs", "1"]) == 0
    assert seen["joint_noise"] == 0.02  # as in training
    text = capsys.readouterr().out
    assert "greedy success   1/2" in text and "mixed groups     1/2" in text
    assert seen["protocol"] == Protocol(seeds=range(2), repetitions=4, decoding=Decoding(0.8))
    assert seen["noise"] == 0.02 and seen["image"] == (128, 128, 3)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["start_policy"]["greedy_rate"] == 0.5
    assert main([*arguments, "--joint-noise", "0.1", "--json"]) == 0 and seen["joint_noise"] == 0.1


def test_renamed_flags_still_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--plan", "--batch-size", "0"]) == 1
    text = capsys.readouterr().err
    assert "--batch-size is now --micro-batch-size" in text and "micro_batch_size must be a positive integer" in text


def test_stored_initial_states_are_widened_by_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--stored`` the noise is a reset option, the one that evaluations use; the environment draws with none."""
    monkeypatch.setattr(checks, "CHECKS", ())
    seen: list[Any] = []

    def describe(policy: Any, env: Any, protocol: Protocol, **kwargs: Any) -> BasePolicyReport:
        made = cloudpickle.loads(cloudpickle.dumps(env))()  # as in a process of its own
        seen.extend([protocol, made.unwrapped.start_noise])
        made.close()
        return BasePolicyReport([True], [[True, False]], {"x": 0.5}, (10.0, 12.0), 0.8)

    monkeypatch.setattr("sb3_tgrpo.evaluation.base_policy.describe_base_policy", describe)
    arguments = ["doctor", "--policy", "tiny", "--assets", "light", "--stored", "--seed", "5", "--n-initial-states", "1"]
    assert main([*arguments, "--start-noise", "0.02"]) == 0
    protocol, drawn_noise = seen
    assert (
        drawn_noise == 0.0
        and [request.options for request in protocol.requests([""]).values()]
        == [{"init_state_id": 0, "start_noise": 0.02, "noise_seed": 5}] * 4
    )
