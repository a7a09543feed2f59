"""What a checkpoint, an adapter and a saved policy record about themselves, and what is refused by it."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from openvla_toys import observation_space, observations

from sb3_tgrpo.envs.spaces import InstructionSpace
from sb3_tgrpo.openvla import Checkpoint, Conventions, OpenVLAPolicy, load_openvla, save_openvla
from sb3_tgrpo.openvla import folder as folders
from sb3_tgrpo.openvla import policy as policies
from sb3_tgrpo.openvla.folder import file_digest, identity_by_ends

BOX = spaces.Box(-1, 1, (7,), np.float32)
STATISTICS = {"action": {"q01": [-0.9] * 6 + [0.0], "q99": [0.9] * 6 + [1.0], "mask": [True] * 6 + [False]}}
ADAPTER_KEYS = {
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules",
    "bias", "init_lora_weights", "fan_in_fan_out", "modules_to_save",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Tiny as a folder that records no conventions but its assets, with statistics of one suite."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ours = {**Checkpoint("tiny").config.raw["sb3_tgrpo"], "assets": "light"}
    statistics = {"libero_object": STATISTICS}
    return save_openvla(load_openvla("tiny", device="cpu"), folder, norm_stats=statistics, config={"sb3_tgrpo": ours})


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def libero_space(*cameras, size=64, suite="libero_object", assets="light"):
    image = spaces.Box(0, 255, (size, size, 3), np.uint8)
    return spaces.Dict({**dict.fromkeys(cameras or ("image",), image), "instruction": InstructionSpace(suite, assets)})


def make(checkpoint, space=None, **kwargs):
    settings = {"value_head": False, "device": "cpu", "lora": {"r": 4}, **kwargs}
    return OpenVLAPolicy(space or libero_space(), BOX, lambda _: 1e-3, checkpoint, **settings)


def record(folder, **entries):
    """Write into config.json's record."""
    raw = json.loads((folder / "config.json").read_text())
    raw["sb3_tgrpo"] |= entries
    (folder / "config.json").write_text(json.dumps(raw))


def change_the_middle(folder):
    """Other weights of the same names, shapes and file size, equal at each file's ends."""
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def moved(policy, seed=0):
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * th.randn(parameter.shape, generator=generator))
    return policy


# ---------------------------------------------------------------------- identity


def test_identity_changes_with_any_byte_of_the_weights(folder):
    before, ends = Checkpoint(folder).identity, identity_by_ends(folder)
    change_the_middle(folder)
    assert identity_by_ends(folder) == ends, "the change should be where the old rule is blind"
    assert Checkpoint(folder).identity != before and not Checkpoint(folder).matches(before)


@pytest.mark.parametrize("file", ["config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"])
def test_identity_changes_with_what_actions_depend_on(folder, file):
    before = Checkpoint(folder).identity
    (folder / file).write_text((folder / file).read_text() + " ")
    assert Checkpoint(folder).identity != before


def test_parameters_are_refused_on_a_base_that_changed_in_the_middle_of_a_file(folder):
    state = moved(make(folder)).state_dict()
    make(folder).load_state_dict(state)
    change_the_middle(folder)
    with pytest.raises(ValueError, match="another base"):
        make(folder).load_state_dict(state)


def test_an_old_fingerprint_is_checked_by_the_old_rule_with_one_warning(folder, recwarn):
    policy, old = make(folder), identity_by_ends(folder)
    state = policy.state_dict()
    state["base_identity"] = th.tensor(list(hashlib.sha256(old.encode()).digest()), dtype=th.uint8)
    policy.load_state_dict(state)
    assert len([w for w in recwarn if "cannot see the middle" in str(w.message)]) == 1
    assert th.equal(policy.state_dict()["base_identity"], make(folder).base_identity), "saved again it has the new one"
    with pytest.warns(UserWarning, match="cannot see the middle"):
        assert Checkpoint(folder).matches(old)
    assert Checkpoint("tiny").matches("tiny") and Checkpoint("tiny").matches(load_openvla("tiny").identity)
    shutil.copy(folder / "config.json", folder / "dataset_statistics.json")
    assert not Checkpoint(folder).matches(old)


@pytest.mark.parametrize("writable", [True, False])
def test_large_files_are_read_once_while_path_size_and_time_stay(tmp_path, monkeypatch, writable):
    cache = tmp_path / "cache"
    if not writable:
        cache.write_text("a file in the folder's place")
    monkeypatch.setenv("SB3_TGRPO_CACHE", str(cache))
    monkeypatch.setattr(folders, "_LARGE", 10)
    reads = []
    real = folders._read_digest
    monkeypatch.setattr(folders, "_read_digest", lambda path: reads.append(path) or real(path))
    file = tmp_path / "large"
    file.write_bytes(b"a" * 100)
    first = file_digest(file)
    assert first == file_digest(file) == hashlib.sha256(b"a" * 100).hexdigest() and len(reads) == 1
    folders._large_digest.cache_clear()  # as in another process
    assert file_digest(file) == first and len(reads) == (1 if writable else 2)
    file.write_bytes(b"b" * 100)
    os.utime(file, ns=(0, 1))
    assert file_digest(file) == hashlib.sha256(b"b" * 100).hexdigest()


# ---------------------------------------------------------------------- conventions


def test_exports_record_how_the_policy_sees_and_acts(saved, tmp_path):
    policy = make(saved, libero_space("wrist_image", size=96), conventions=Conventions(image_key="eye_in_hand_rgb"))
    policy.export_merged(tmp_path, dtype="float32")
    ours = json.loads((tmp_path / "config.json").read_text())["sb3_tgrpo"]
    expected = {
        "assets": "light", "gripper": "libero", "image_key": "eye_in_hand_rgb", "image_size": [96, 96],
        "unnorm_key": "libero_object",
    }  # fmt: skip
    assert {name: ours[name] for name in expected} == expected and ours["patch_merge"] == 2
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.env_kwargs() == {"observations": ("wrist_image",), "assets": "light", "image_size": 96}
    assert checkpoint.assumptions() is None and checkpoint.unnorm_key() == "libero_object"


def test_the_recorded_camera_is_read_and_another_one_refused(folder):
    record(folder, image_key="eye_in_hand_rgb")
    policy = make(folder, libero_space("image", "wrist_image"))
    agent, wrist = observations(2)["image"], observations(2, seed=1)["image"]
    words = observations(2)["instruction"]
    seen = policy.predict({"image": agent, "wrist_image": wrist, "instruction": words}, deterministic=True)[0]
    plain = make(folder, observation_space(), gripper="libero", unnorm_key="libero_object")
    assert np.array_equal(seen, plain.predict({"image": wrist, "instruction": words}, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"image_key='eye_in_hand_rgb'.*shows image.*observations=\('wrist_image',\)"):
        make(folder)
    record(folder, image_key="front_rgb")
    with pytest.raises(ValueError, match=r"image_key='front_rgb'.*agentview_rgb or eye_in_hand_rgb"):
        make(folder)


def test_frames_of_another_size_than_recorded_are_refused(folder):
    make(folder, libero_space(size=96))  # nothing is recorded
    record(folder, image_size=[128, 128])
    make(folder, libero_space(size=128))
    with pytest.raises(ValueError, match=r"trained on frames of 128x128.*image_size=128"):
        make(folder, libero_space(size=96))
    make(folder, libero_space(size=96), conventions=Conventions(image_size=(96, 96)))  # about to be trained on these


def test_the_recorded_gripper_is_the_default(folder):
    assert make(folder).gripper == "libero" and make(folder, observation_space()).gripper == "none"
    record(folder, gripper="none")
    assert make(folder).gripper == "none" and make(folder, gripper="libero").gripper == "libero"


def test_what_is_not_recorded_is_named_once_and_never_refused(folder, caplog):
    policies._log_assumptions.cache_clear()
    with caplog.at_level(logging.WARNING, "sb3_tgrpo"):
        make(folder), make(folder), make("tiny")
    assert len(caplog.messages) == 1
    assert "gripper=libero, image_key=agentview_rgb, image_size=128x128" in caplog.text and "assets" not in caplog.text


@pytest.mark.parametrize("entry", [{"gripper": "panda"}, {"image_size": 128}, {"image_size": [0, 1]}, {"assets": ["light"]}])
def test_damaged_conventions_are_named(folder, entry):
    record(folder, **entry)
    with pytest.raises(ValueError, match=f"config.json: sb3_tgrpo.{next(iter(entry))}="):
        load_openvla(folder)


def test_shipped_and_upstream_checkpoints():
    shipped = Checkpoint(Path(policies.__file__).parents[1] / "data" / "start")
    assert (shipped.assets, shipped.image_size, shipped.unnorm_key(suite="libero_object")) == ("light", 128, "libero_object")
    assert shipped.instructions == ["pick up the chocolate pudding and place it in the basket"]
    upstream = Checkpoint("openvla/openvla-7b-finetuned-libero-goal", download=False)
    assert (
        upstream.env_kwargs() == {"assets": "auto", "image_size": 256}
        and upstream.assets == "full"
        and upstream.assumptions() is None
    )
    tiny = Checkpoint("tiny")
    assert (tiny.assets, tiny.image_size, tiny.statistics) == ("light", 128, {})


def test_nothing_heavy_is_imported_to_read_a_record(saved):
    script = f"""
import sys
from sb3_tgrpo.openvla import Checkpoint
c = Checkpoint({str(saved)!r})
c.check_assets("light", False), c.identity, c.unnorm_key(), c.env_kwargs()
assert not {{"torch", "transformers", "peft"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("names", "entries", "chosen"),
    [
        (["bridge_orig"], {}, None),
        (["bridge_orig"], {"unnorm_key": "bridge_orig"}, "bridge_orig"),
        (["my_demos"], {"sft": {"updates": 1}}, "my_demos"),  # written by a version that recorded no key
        (["libero_goal"], {}, "libero_goal"),  # LIBERO's robot
        (["libero_object", "libero_goal"], {}, "libero_object"),
        (["libero_object", "libero_goal"], {"unnorm_key": "libero_goal"}, None),
    ],
)
def test_statistics_of_another_robot_are_used_by_name_only(folder, names, entries, chosen):
    (folder / "dataset_statistics.json").write_text(json.dumps(dict.fromkeys(names, STATISTICS)))
    record(folder, **entries)
    if chosen is not None:
        assert Checkpoint(folder).unnorm_key(suite="libero_object") == make(folder).unnorm_key == chosen
        return
    for ask in (lambda: Checkpoint(folder).unnorm_key(suite="libero_object"), lambda: make(folder)):
        with pytest.raises(ValueError, match="unnorm_key is needed"):
            ask()
    assert make(folder, unnorm_key=names[0]).unnorm_key == names[0]


# ---------------------------------------------------------------------- what is not OpenVLA's


def test_openvla_oft_is_refused(folder):
    """Its folders hold OpenVLA's tensors, its files and statistics tell them apart."""
    for name in (
        "moojink/openvla-7b-oft-finetuned-libero-goal",
        "RLinf/RLinf-OpenVLAOFT-GRPO-LIBERO-goal",
        "a/Openvla-oft-SFT",
    ):
        with pytest.raises(ValueError, match=r"OpenVLA-OFT's \(its name\)"):
            load_openvla(name)
    zeros = {"proprio": {"q01": [0.0] * 7, "q99": [0.0] * 7}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_object": STATISTICS | zeros}))
    load_openvla(folder)  # as in OpenVLA's own
    (folder / "action_head--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"OpenVLA-OFT's \(action_head--150000_checkpoint.pt\)"):
        load_openvla(folder)
    (folder / "action_head--150000_checkpoint.pt").unlink()
    proprio = {"proprio": {"q01": [0.0] * 8, "q99": [1.0] * 8}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"libero_object": STATISTICS | proprio}))
    with pytest.raises(ValueError, match="proprioceptive statistics of 'libero_object'"):
        make(folder)
    Checkpoint("someone/soft-touch").check_name()


def test_a_run_folder_is_answered_with_the_checkpoint_inside(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": {"env": "LIBERO/libero_object-8-v0"}}))
    with pytest.raises(ValueError, match="is not an OpenVLA configuration"):
        load_openvla(tmp_path)
    shutil.copytree(saved, tmp_path / "start" / "checkpoint")
    with pytest.raises(ValueError, match=f"did you mean '{tmp_path}/start/checkpoint'"):
        Checkpoint(tmp_path).config  # noqa: B018
    shutil.copytree(saved, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=f"did you mean '{tmp_path}/checkpoint'"):
        load_openvla(tmp_path)


# ---------------------------------------------------------------------- adapters


def test_an_adapter_is_refused_on_another_base(folder, tmp_path):
    adapter = moved(make(folder)).export_adapter(tmp_path / "adapter")
    make(folder, adapter=adapter)
    change_the_middle(folder)
    with pytest.raises(ValueError, match=r"trained on another base \('copy'\)"):
        make(folder, adapter=adapter)
    raw = json.loads((adapter / "sb3_tgrpo.json").read_text())
    (adapter / "sb3_tgrpo.json").write_text(json.dumps(raw | {"base_identity": identity_by_ends(folder)}))
    with pytest.warns(UserWarning, match="cannot see the middle"):
        make(folder, adapter=adapter)


def test_an_adapter_without_a_record_is_checked_by_its_bases_name(folder, tmp_path):
    adapter = moved(make(folder)).export_adapter(tmp_path / "adapter")
    (adapter / "sb3_tgrpo.json").unlink()
    make(folder, adapter=adapter)  # "copy", the folder's name
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/else"}))
    with pytest.warns(UserWarning, match=r"is for 'someone/else'.*cannot be checked"):
        make(folder, adapter=adapter)


def test_everything_needed_to_use_an_adapter_lies_beside_it(folder, tmp_path):
    own = {"mine": {"action": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 7}}}
    trained = make(folder, libero_space(size=96), statistics=own, gripper="none", temperature=0.7)
    adapter = moved(trained).export_adapter(tmp_path / "adapter")
    policy = make(folder, libero_space(size=96), adapter=adapter)
    assert (policy.gripper, policy.temperature, policy.unnorm_key) == ("none", 0.7, "mine")
    assert policy.model.statistics("mine") == own["mine"]
    tokens = np.full((1, 7), 1000)
    assert np.array_equal(policy.unscale_action(tokens), trained.unscale_action(tokens))
    raw = json.loads((adapter / "sb3_tgrpo.json").read_text())
    (adapter / "sb3_tgrpo.json").write_text(json.dumps(raw | {"gripper": "libero"}))
    with pytest.raises(ValueError, match="another base"):
        make(folder, libero_space(size=96), adapter=adapter).load_state_dict(policy.state_dict())
    with pytest.raises(ValueError, match="trained on frames of 96x96"):
        make(folder, adapter=adapter)
    full = libero_space(size=96, assets="full")
    with pytest.raises(ValueError, match="trained with the light ones"):
        make(folder, full, adapter=adapter)
    (adapter / "sb3_tgrpo.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sb3_tgrpo.json is damaged \(it lacks base"):
        make(folder, adapter=adapter)


@pytest.mark.parametrize("on_another", [False, True])
def test_exported_settings_are_those_that_old_peft_knows_without_local_paths(folder, tmp_path, on_another):
    kwargs = {"adapter": moved(make(folder)).export_adapter(tmp_path / "first")} if on_another else {}
    adapter = moved(make(folder, **kwargs), seed=1).export_adapter(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert set(config) == ADAPTER_KEYS and config["base_model_name_or_path"] == "copy"
    for name in ("adapter_config.json", "sb3_tgrpo.json", "README.md"):
        assert str(tmp_path) not in (adapter / name).read_text(), name


PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

class Base(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.language_model = config, LlamaForCausalLM(config)
    def forward(self, input_ids):
        return self.language_model(input_ids=input_ids).logits

adapter, weights, sizes, out = sys.argv[1:]
base = Base(LlamaConfig(**torch.load(sizes)))
base.load_state_dict(torch.load(weights))
model = PeftModel.from_pretrained(base, adapter).eval()
with torch.no_grad():
    torch.save(model(torch.arange(3, 9)[None]), out)
assert "sb3_tgrpo" not in sys.modules
"""


def test_plain_peft_reads_an_exported_adapter_in_a_fresh_process(folder, tmp_path):
    policy = moved(make(folder, lora="language"))
    adapter = policy.export_adapter(tmp_path / "adapter")
    weights = {name: value for name, value in load_openvla(folder).state_dict().items() if name.startswith("language_model.")}
    th.save(weights, tmp_path / "weights.pt")
    th.save(policy.model.config.text_config, tmp_path / "sizes.pt")
    files = [str(tmp_path / name) for name in ("weights.pt", "sizes.pt", "logits.pt")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN_PEFT, str(adapter), *files]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    with th.no_grad():
        expected = policy.model.language_model(input_ids=th.arange(3, 9)[None]).logits
        without = load_openvla(folder).language_model(input_ids=th.arange(3, 9)[None]).logits
    assert (th.load(tmp_path / "logits.pt") - expected).abs().max() < 1e-4
    assert (without - expected).abs().max() > 1e-2


def test_a_policy_for_the_spaces_of_an_environment(folder):
    class Env:
        observation_space, action_space = libero_space(), BOX

    policy = OpenVLAPolicy.for_env(Env(), folder, device="cpu")
    assert policy.lora is None and policy.value_net is None and policy.checkpoint == str(folder)
    with pytest.raises(TypeError, match="temprature"):
        OpenVLAPolicy.for_env(Env(), folder, temprature=0.5)
