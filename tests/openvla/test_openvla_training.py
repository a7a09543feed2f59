"""OpenVLAPolicy under PPO, A2C and TGRPO: learning, saving, and getting results out."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from openvla_toys import FollowInstruction, InstructionSpace, observation_space, observations
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_tgrpo import TGRPO, OpenVLAPolicy
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.openvla import load_openvla

TINY = {"checkpoint": "tiny"}


def success(model, n=40, deterministic=False):
    """Mean reward over both instructions; choosing by chance gives one half."""
    env = FollowInstruction()
    total = 0.0
    for seed in range(n):
        obs, _ = env.reset(seed=seed)
        action, _ = model.predict(obs, deterministic=deterministic)
        total += env.step(action)[1]
    return total / n


def vec_env(n=16):
    return DummyVecEnv([FollowInstruction] * n)


def make(algorithm, seed=0, **policy_kwargs):
    kwargs = {"policy_kwargs": {**TINY, **policy_kwargs}, "seed": seed, "device": "cpu"}
    if algorithm is TGRPO:
        env = make_group_env(FollowInstruction, group_size=8, n_groups=4, subprocess=False)
        return TGRPO("OpenVLAPolicy", env, learning_rate=3e-3, n_epochs=4, batch_size=64, groups_per_update=8, **kwargs)
    if algorithm is A2C:
        return A2C(OpenVLAPolicy, vec_env(), n_steps=1, gamma=0.0, learning_rate=3e-3, **kwargs)
    return PPO(
        OpenVLAPolicy, vec_env(), n_steps=16, batch_size=64, n_epochs=4, gamma=0.0, learning_rate=3e-3, **kwargs
    )  # fmt: skip


@pytest.mark.parametrize(("algorithm", "steps"), [(PPO, 2048), (TGRPO, 1536)])
def test_choosing_the_action_named_in_the_instruction_is_learned(algorithm, steps):
    model = make(algorithm)
    start = success(model)
    assert start < 0.7
    frozen = {n: p.clone() for n, p in model.policy.named_parameters() if not p.requires_grad}
    trainable = {n: p.clone() for n, p in model.policy.named_parameters() if p.requires_grad}
    model.learn(steps)
    assert success(model) > 0.85 and success(model, deterministic=True) > 0.95
    after = dict(model.policy.named_parameters())
    assert all(th.equal(after[name], value) for name, value in frozen.items())
    moved = {name for name, value in trainable.items() if not th.equal(after[name], value)}
    assert {name for name in trainable if "lora" in name} <= moved
    # TGRPO has no critic: the value head stays where it was.
    assert any("value_net" in name for name in moved) == (algorithm is PPO)


def test_a_blind_policy_does_not_learn():
    """The instruction is what carries the information: a policy given a fixed one stays at chance."""
    model = make(PPO, instruction="put it to the left")
    model.learn(1024)
    assert success(model) < 0.75


@pytest.mark.parametrize("algorithm", [PPO, A2C, TGRPO])
@pytest.mark.parametrize("lora", ["language", None])
def test_saved_files_hold_what_was_trained(algorithm, lora, tmp_path):
    model = make(algorithm, lora=lora)
    model.learn(64)
    path = tmp_path / "model.zip"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        saved = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    if lora is not None:
        assert not any("base_layer" in name or "vision_backbone" in name or "embed_tokens" in name for name in saved)
        assert sum(tensor.numel() for tensor in saved.values()) < 200_000
    else:
        assert any("vision_backbone" in name for name in saved)
        assert any(name.startswith("reference_model.") for name in saved) == (algorithm is TGRPO)
    assert any("value_net" in name for name in saved)
    loaded = algorithm.load(path, env=model.env, device="cpu")
    obs = observations(4)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    batch = model.policy.obs_to_tensor(obs)[0]
    tokens = th.full((4, 1), 900)
    for method in ("action_log_prob", "reference_log_prob") if algorithm is TGRPO else ("action_log_prob",):
        first, second = getattr(model.policy, method)(batch, tokens), getattr(loaded.policy, method)(batch, tokens)
        th.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    state, other = model.policy.optimizer.state_dict()["state"], loaded.policy.optimizer.state_dict()["state"]
    assert state and state.keys() == other.keys()
    loaded.learn(64, reset_num_timesteps=False)


def test_ratio_is_one_at_the_first_minibatch():
    from stable_baselines3.common.logger import Logger

    class Recorder(Logger):
        def __init__(self):
            super().__init__(None, [])
            self.values = []

        def record(self, key, value, exclude=None):
            if key == "train/ratio_error_first":
                self.values.append(value)

    model = make(TGRPO)
    model.set_logger(Recorder())
    model.learn(512)
    assert len(model.logger.values) >= 4 and max(model.logger.values) < 1e-4


def test_seed_gives_the_same_run():
    runs = []
    for seed in (0, 0, 1):
        model = make(PPO, seed=seed)
        model.learn(256)
        runs.append(th.cat([p.flatten() for p in model.policy.parameters() if p.requires_grad]))
    assert th.equal(runs[0], runs[1]) and not th.equal(runs[0], runs[2])


def test_another_base_is_refused(tmp_path):
    model = make(PPO)
    model.save(tmp_path / "model.zip")
    model.policy.export_merged(tmp_path / "other", dtype="float32")
    with pytest.raises(ValueError, match="another base"):
        PPO.load(
            tmp_path / "model.zip",
            custom_objects={"policy_kwargs": {"checkpoint": str(tmp_path / "other")}},
            env=vec_env(),
        )
    with pytest.raises((KeyError, RuntimeError), match="lora_A"):
        broken = {
            name: value for name, value in model.policy.state_dict().items() if "layers.0.self_attn.q_proj.lora_A" not in name
        }
        model.policy.load_state_dict(broken)


def test_policy_alone_saves_and_loads(tmp_path):
    policy = make(PPO).policy
    policy.save(tmp_path / "policy.pth")
    loaded = OpenVLAPolicy.load(tmp_path / "policy.pth")
    obs = observations(3)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0])
    assert (tmp_path / "policy.pth").stat().st_size < 1_500_000


# ---------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def trained():
    model = make(PPO)
    model.learn(512)
    return model.policy


def logits(model, obs_policy, obs):
    batch = obs_policy.obs_to_tensor(obs)[0]
    pixels = model.pixel_values(model.preprocess(obs_policy._images(batch)))
    with th.no_grad():
        return model.action_logits(pixels, obs_policy._prompts(batch, len(pixels)).input_ids, th.full((len(pixels), 1), 900))


def test_adapter_folder_is_peft(trained, tmp_path):
    from peft import PeftModel

    trained.export_adapter(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name" in card and "action_space" in card and "sb3-tgrpo" in card
    obs = observations(4)
    loaded = PeftModel.from_pretrained(load_openvla("tiny"), str(tmp_path / "adapter"))
    expected = logits(trained.model, trained, obs)
    assert (logits(loaded.get_base_model(), trained, obs) - expected).abs().max() < 1e-5
    assert (logits(load_openvla("tiny"), trained, obs) - expected).abs().max() > 1e-2


def test_a_given_adapter_is_merged_and_becomes_the_start(trained, tmp_path):
    trained.export_adapter(tmp_path / "adapter")
    policy = make(PPO, adapter=str(tmp_path / "adapter")).policy
    obs = observations(4)
    assert (logits(policy.model, trained, obs) - logits(trained.model, trained, obs)).abs().max() < 1e-4
    batch = trained.obs_to_tensor(obs)[0]
    tokens = th.full((4, 1), 900)
    with th.no_grad():
        start = trained.action_log_prob(batch, tokens)[0]
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
        assert (policy.reference_log_prob(batch, tokens) - start).abs().max() < 1e-4
        assert (policy.action_log_prob(batch, tokens)[0] - start).abs().max() > 1e-3
    assert not th.equal(policy.base_identity, trained.base_identity)
    with pytest.raises(ValueError, match=r"lacks adapter_config\.json"):
        make(PPO, adapter=str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder"):
        make(PPO, adapter="nowhere")


def moved(policy, seed=0):
    """The policy with an adapter that does something, without training it."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * th.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("language", "language"),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q_proj", "fc2"]}, {"r": 8, "lora_alpha": 3}),
        # a convolution among the modules, and ranks that differ by module
        ("upstream", {"r": 2, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 5}}),
    ],
    ids=["same", "other modules and scalings", "upstream"],
)
def test_an_adapter_on_top_of_another_is_exported_with_it(first, second, tmp_path):
    from peft import PeftModel

    moved(policy_for(observation_space(), checkpoint="tiny", lora=first)).export_adapter(tmp_path / "first")
    kwargs = {"checkpoint": "tiny", "adapter": tmp_path / "first"}
    policy = moved(policy_for(observation_space(), lora=second, **kwargs), seed=1)
    policy.export_adapter(tmp_path / "second")
    obs = observations(4)
    expected = logits(policy.model, policy, obs)
    loaded = PeftModel.from_pretrained(load_openvla("tiny"), str(tmp_path / "second")).get_base_model()
    assert (logits(loaded, policy, obs) - expected).abs().max() < 1e-4
    again = policy_for(observation_space(), checkpoint="tiny", adapter=tmp_path / "second")
    assert (logits(again.model, policy, obs) - expected).abs().max() < 1e-4
    start = policy_for(observation_space(), **kwargs)
    assert (logits(start.model, policy, obs) - expected).abs().max() > 1e-2
    card = (tmp_path / "second" / "README.md").read_text()
    assert "It contains the adapter `first`" in card and "checkpoint `tiny`" in card


def test_adapters_that_can_not_be_written_as_one_are_refused(tmp_path):
    config = {"target_modules": ["embed_tokens"], "init_lora_weights": True}
    moved(policy_for(observation_space(), checkpoint="tiny", lora=config)).export_adapter(tmp_path / "first")
    policy = policy_for(observation_space(), checkpoint="tiny", adapter=tmp_path / "first")
    with pytest.raises(ValueError, match="use export_merged"):
        policy.export_adapter(tmp_path / "second")


@pytest.mark.parametrize("on_another", [False, True])
@pytest.mark.parametrize("fails", ["config", "weights", "move"])
def test_an_interrupted_export_leaves_the_whole_adapter_or_none(fails, on_another, trained, tmp_path, monkeypatch):
    folder = trained.export_adapter(tmp_path / "adapter")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = moved(policy_for(observation_space(), checkpoint="tiny", lora={"r": 2}, adapter=folder if on_another else None))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if fails == "config":
            patch.setattr("peft.LoraConfig.save_pretrained", interrupted)
        elif fails == "weights":
            patch.setattr("safetensors.torch.save_file", interrupted)
            patch.setattr("peft.peft_model.safe_save_file", interrupted)
        else:
            patch.setattr("sb3_tgrpo.openvla.lora.os.replace", interrupted)
        other.export_adapter(folder)
    if fails == "move":
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            policy_for(observation_space(), checkpoint="tiny", adapter=folder)
    else:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
    other.export_adapter(folder)
    assert {file.name for file in folder.iterdir()} == set(contents)
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    obs = observations(4)
    again = policy_for(observation_space(), checkpoint="tiny", adapter=folder)
    assert (logits(again.model, other, obs) - logits(other.model, other, obs)).abs().max() < 1e-3
    assert (logits(again.model, other, obs) - logits(trained.model, other, obs)).abs().max() > 1e-2


def half_of(weights):
    return {name: tensor for name, tensor in weights.items() if "layers.1." not in name}


def of_other_modules(weights):
    return {name.replace("self_attn", "cross_attn"): tensor for name, tensor in weights.items()}


def not_finite(weights):
    return {name: tensor * float("nan") for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half_of, r"14 of its 30 tensors are missing \(.*layers\.1\..*\.\.\.\), 0 have no place"),
        (of_other_modules, r"16 of its 30 tensors are missing .*, 16 have no place \(.*cross_attn"),
        (lambda weights: weights | {"more": th.zeros(1)}, r"0 of its 30 tensors are missing, 1 have no place \(more\)"),
        (not_finite, "30 tensors hold values that are not finite"),
        (lambda weights: {name: tensor[:1] for name, tensor in weights.items()}, "size mismatch"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(change, message, trained, tmp_path):
    from safetensors.torch import load_file, save_file

    file = trained.export_adapter(tmp_path) / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ValueError, match=f"adapter='.*{message}"):
        policy_for(observation_space(), checkpoint="tiny", adapter=tmp_path)


def test_damaged_adapters_are_refused(trained, tmp_path):
    trained.export_adapter(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    content, settings = weights.read_bytes(), json.loads(config.read_text())
    for damaged in (b"", b"junk", content[:-10]):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"adapter='.* does not fit"):
            policy_for(observation_space(), checkpoint="tiny", adapter=tmp_path)
    weights.write_bytes(content)
    for text, message in (
        ("{", "adapter_config.json is damaged"),
        ("[]", "adapter_config.json is damaged"),
        (json.dumps(settings | {"use_dora": True}), "uses use_dora: only plain"),
        (json.dumps(settings | {"bias": "all"}), "uses bias: only plain"),
        (json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}), "only LoRA"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=f"adapter='.*{message}"):
            policy_for(observation_space(), checkpoint="tiny", adapter=tmp_path)


def test_merged_checkpoint_equals_base_plus_adapter(trained, tmp_path):
    obs = observations(6)
    batch = trained.obs_to_tensor(obs)[0]
    expected = logits(trained.model, trained, obs)
    assert trained.export_merged(tmp_path / "float32", dtype="float32", obs=batch) == 0.0
    merged = load_openvla(tmp_path / "float32")
    assert (logits(merged, trained, obs) - expected).abs().max() < 1e-4
    flips = trained.export_merged(tmp_path / "bfloat16", obs=batch)
    assert 0.0 <= flips <= 0.5
    assert load_openvla(tmp_path / "bfloat16", dtype="bfloat16").dtype == th.bfloat16
    assert (logits(trained.model, trained, obs) - expected).abs().max() == 0  # exporting changes nothing


def test_full_fine_tuning_has_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="export_merged"):
        make(PPO, lora=None).policy.export_adapter(tmp_path)


def test_push_to_hub_uploads_the_adapter(trained, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            import os

            calls.append(sorted(os.listdir(folder_path)))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert trained.push_to_hub("someone/adapter", private=True).endswith("someone/adapter")
    assert calls == [
        ("someone/adapter", True),
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "sb3_tgrpo.json"],
    ]


# ---------------------------------------------------------------------- which checkpoint an environment gets


def libero_space(image_size=64, **attributes):
    image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    return spaces.Dict({"image": image, "instruction": InstructionSpace(**attributes)})


def policy_for(space, **kwargs):
    return OpenVLAPolicy(space, spaces.Box(-1, 1, (1,), np.float32), lambda _: 1e-3, **kwargs)


def test_the_default_is_the_suites_fine_tune_and_light_assets_are_refused(tmp_path, monkeypatch):
    asked = []

    def refuse(name, **options):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    full = libero_space(suite="libero_goal", assets="full", assets_by_name=False)
    with pytest.raises(ValueError, match="Hugging Face hub: no network"):
        policy_for(libero_space(256, suite="libero_goal", assets="full", assets_by_name=False))
    assert asked == ["openvla/openvla-7b-finetuned-libero-goal"]
    with pytest.raises(ValueError, match="libero_90"):
        policy_for(libero_space(suite="libero_90", assets="full", assets_by_name=False))
    light = libero_space(suite="libero_goal", assets="light", assets_by_name=False)
    with pytest.raises(ValueError, match=r"light assets.*SB3_TGRPO_LIBERO_ASSETS"):
        policy_for(light)
    by_name = libero_space(256, suite="libero_goal", assets="light", assets_by_name=True)
    with pytest.raises(ValueError, match="no network"):  # asked for by name: not refused
        policy_for(by_name)

    tiny = policy_for(light, checkpoint="tiny")
    tiny.export_merged(tmp_path / "light", dtype="float32")
    assert policy_for(light, checkpoint=tmp_path / "light").conventions.assets == "light"
    policy_for(full, checkpoint="tiny").export_merged(tmp_path / "full", dtype="float32")
    with pytest.raises(ValueError, match="light assets"):
        policy_for(light, checkpoint=tmp_path / "full")
