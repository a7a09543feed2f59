"""Checkpoint folders with the real layout: sizes, shards, statistics, tokenizer, and what is said when they are wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from sb3_tgrpo.openvla import Checkpoint, load_openvla, prompt_token_ids, save_openvla
from sb3_tgrpo.openvla.actions import bin_tokens, bin_values, libero_gripper, normalise, resolve_unnorm_key, unnormalise
from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.loading import _shard_plan, build_empty, quantize_language_model
from sb3_tgrpo.openvla.lora import attach_lora
from sb3_tgrpo.openvla.prompt import prompt_text
from sb3_tgrpo.openvla.tiny import build_tiny, subtract_mean_image, tiny_config

GOLDEN = Path(__file__).parents[1] / "golden" / "openvla-tiny"

UPSTREAM_CONFIG = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "model_type": "openvla",
    "n_action_bins": 256,
    "norm_stats": {},
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
}

SPATIAL = {
    "action": {
        "q01": [-0.7454732114076613, -0.6616071462631226, -0.9375, -0.1071428582072258, -0.20678570866584778,
                -0.1842857152223587, 0.0],
        "q99": [0.9375, 0.8758928775787354, 0.9321428537368774, 0.1039285734295845, 0.17678570747375488,
                0.14571428298950195, 1.0],
        "mask": [True] * 6 + [False],
    }
}  # fmt: skip


# ---------------------------------------------------------------------- full size, without memory


@pytest.fixture(scope="module")
def full_size():
    return build_empty(OpenVLAConfig.from_dict(UPSTREAM_CONFIG))


def test_full_size_has_upstreams_tensors(full_size):
    state = full_size.state_dict()
    assert len(state) == 982
    assert sum(parameter.numel() for parameter in full_size.parameters()) == 7_541_237_184
    assert full_size.config.action_vocab_begin == 31744 and full_size.config.n_visual_tokens == 256
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["vision_backbone.featurizer.blocks.22.ls2.scale_factor"] == (1024,)
    assert shapes["vision_backbone.fused_featurizer.blocks.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["vision_backbone.fused_featurizer.attn_pool.kv.weight"] == (2304, 1152)
    assert shapes["projector.fc1.weight"] == (8704, 2176)
    assert shapes["language_model.lm_head.weight"] == (32064, 4096)
    assert full_size.language_model.config.rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (7_000_000_000, [(805, 6_948_858_752), (154, 6_971_211_776), (23, 1_162_403_840)]),
        (5_000_000_000, [(760, 4_925_025_152), (109, 4_947_378_176), (112, 4_947_402_752), (1, 262_668_288)]),
    ],
)
def test_shards_are_cut_where_upstreams_are(full_size, max_bytes, expected):
    sizes = {name: 2 * tensor.numel() for name, tensor in full_size.state_dict().items()}
    plan, total = _shard_plan(full_size.state_dict(), th.bfloat16, max_bytes)
    assert [(len(names), sum(sizes[name] for name in names)) for names in plan.values()] == expected
    assert total == sum(sizes.values()) and list(plan)[1] == f"model-00002-of-{len(expected):05d}.safetensors"


@pytest.mark.parametrize(("lora", "modules", "parameters"), [("upstream", 439, 110_828_288), ("language", 225, 81_111_040)])
def test_adapters_at_full_size(lora, modules, parameters):
    model = build_empty(OpenVLAConfig.from_dict(UPSTREAM_CONFIG))
    wrapper = attach_lora(model, lora)
    assert sum(parameter.numel() for parameter in wrapper.parameters() if parameter.requires_grad) == parameters
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == modules


# ---------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """A synthetic checkpoint in the upstream layout, its shards cut inside decoder layers."""
    model = build_tiny()
    stats = {"libero_object_no_noops": SPATIAL, "other": {"action": {"q01": [0.0, 1.0], "q99": [2.0, 1.0]}}}
    save_openvla(model, tmp_path, norm_stats=stats, dtype=th.bfloat16, max_shard_bytes=150_000)
    return tmp_path


def test_layout_and_round_trip(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and all((folder / name).is_file() for name in files)
    layers = {}
    for name, file in index["weight_map"].items():
        if "language_model.model.layers." in name:
            layers.setdefault(name.split(".")[3], set()).add(file)
    assert any(len(where) > 1 for where in layers.values()), "no decoder layer is split across files"
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    original, loaded = build_tiny().state_dict(), load_openvla(folder, dtype="float32").state_dict()
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in original.values())
    for name, tensor in original.items():
        assert th.equal(loaded[name], tensor.to(th.bfloat16).float()), name
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not list(folder.glob(".*")) and not list(folder.glob("tmp*"))


def test_every_file_is_read(folder):
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor["tvf_normalize_params"][0]["mean"] = [0.1, 0.2, 0.3]
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    model = load_openvla(folder, device="cpu")
    assert model.dtype == th.float32 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.normalization.means[0] == (0.1, 0.2, 0.3)
    assert set(model.norm_stats) == {"libero_object_no_noops", "other"}
    assert prompt_token_ids(model.tokenizer, "Pick up the bowl")[0] == 1
    # dataset_statistics.json overrides config.json's norm_stats.
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": SPATIAL}))
    assert set(load_openvla(folder).norm_stats) == {"mine"}
    (folder / "dataset_statistics.json").unlink()
    assert "other" in load_openvla(folder).norm_stats


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_stay_float32(folder, dtype):
    reference = load_openvla(folder, dtype="float32").language_model.model.rotary_emb.inv_freq
    model = load_openvla(folder, dtype=dtype)
    moved = load_openvla(folder, dtype="float32").to(th.bfloat16)
    for rotary in (model.language_model.model.rotary_emb, moved.language_model.model.rotary_emb):
        assert rotary.inv_freq.dtype == th.float32 and th.equal(rotary.inv_freq, reference)
    # Casting only Llama goes around our guard; the consequence is what the guard prevents.
    model.language_model.to(th.bfloat16)
    assert not th.equal(model.language_model.model.rotary_emb.inv_freq.float(), reference)


def test_unnorm_keys(folder):
    model = load_openvla(folder)
    tokens = th.full((1, 7), 1024 - 128)
    for key in ("libero_object", "libero_object_no_noops"):
        assert model.decode_actions(tokens, key).shape == (1, 7)
    with pytest.raises(ValueError, match=r"'libero_goal' is not among .* libero_object_no_noops, other"):
        model.decode_actions(tokens, "libero_goal")
    with pytest.raises(ValueError, match="unnorm_key is needed"):
        model.decode_actions(tokens)
    with pytest.raises(ValueError, match="7 per action"):
        model.decode_actions(tokens, "other")
    assert resolve_unnorm_key(["a"]) == "a" and resolve_unnorm_key(["a", "b_no_noops"], suite="b") == "b_no_noops"


def test_config_of_a_folder_without_its_weights(folder):
    assert Checkpoint(folder).assets is None and Checkpoint("tiny").config.pipeline == "area"
    raw = json.loads((folder / "config.json").read_text())
    raw["sb3_tgrpo"]["assets"] = "light"
    (folder / "config.json").write_text(json.dumps(raw))
    assert Checkpoint(folder).assets == "light"


# ---------------------------------------------------------------------- damage


def test_what_is_not_openvla_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load_openvla(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_openvla(empty)
    (empty / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"text_config, n_action_bins, pad_to_multiple_of, timm_model_ids .*'llama'"):
        load_openvla(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_openvla(empty)
    shutil.copy(folder / "config.json", empty / "config.json")
    with pytest.raises(ValueError, match=r"neither model\.safetensors\.index\.json nor"):
        load_openvla(empty)
    (empty / "config.json").write_text(json.dumps({**UPSTREAM_CONFIG, "timm_model_ids": ["vit_base"]}))
    with pytest.raises(ValueError, match="vit_base"):
        load_openvla(empty)


def test_missing_and_truncated_shards(folder):
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["projector.fc1.weight"]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{shard.name} is truncated"):
        load_openvla(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=f"lacks {shard.name}"):
        load_openvla(folder)


def test_missing_unexpected_and_misshapen_tensors(folder):
    from safetensors.torch import load_file, save_file

    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    whole = {name: tensor for file in set(index["weight_map"].values()) for name, tensor in load_file(folder / file).items()}
    index_path.unlink()
    single = folder / "model.safetensors"
    save_file(whole, single)
    load_openvla(folder)
    save_file({**{k: v for k, v in whole.items() if k != "projector.fc3.bias"}, "extra.weight": th.zeros(1)}, single)
    with pytest.raises(ValueError, match=r"1 tensors missing \(projector.fc3.bias\), 1 unexpected \(extra.weight\)"):
        load_openvla(folder)
    save_file({**whole, "projector.fc3.bias": th.zeros(5)}, single)
    with pytest.raises(ValueError, match=r"projector.fc3.bias has shape \(5,\), the configuration gives \(96,\)"):
        load_openvla(folder)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (INDEX, "{}", "it has no weight_map"),
        (INDEX, "[]", "no JSON object"),
        (INDEX, '{"weight_map": {"projector.fc1.weight": 1}}', "it has no weight_map"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", json.dumps({**UPSTREAM_CONFIG, "text_config": []}), "text_config must be an object"),
        ("config.json", json.dumps({**UPSTREAM_CONFIG, "norm_stats": [1]}), r"must be \{dataset"),
        ("dataset_statistics.json", "{", "not JSON"),
        ("dataset_statistics.json", "[1]", "no JSON object"),
        ("dataset_statistics.json", '{"mine": 1}', "'mine' has 1"),
        ("dataset_statistics.json", '{"mine": {"action": {}}}', "'mine' has"),
        ("dataset_statistics.json", '{"mine": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}}', "'mine' has"),
        ("dataset_statistics.json", '{"mine": {"action": {"q01": [0.0], "q99": [NaN]}}}', "'mine' has"),
        ("preprocessor_config.json", "{", "not JSON"),
        ("preprocessor_config.json", "[]", "no JSON object"),
        ("preprocessor_config.json", '{"tvf_normalize_params": [{}]}', "tvf_normalize_params"),
        ("preprocessor_config.json", '{"tvf_normalize_params": 1}', "tvf_normalize_params"),
    ],
)
def test_damaged_json_names_the_file(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        load_openvla(folder)


def test_damaged_statistics_that_nobody_asks_for_do_not_matter(folder):
    damaged = {"action": {"q01": [float("nan")] * 7, "q99": [1.0] * 7}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": SPATIAL, "damaged": damaged}))
    model = load_openvla(folder)
    assert model.statistics("mine") == SPATIAL
    with pytest.raises(ValueError, match="'damaged' has"):
        model.statistics("damaged")


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100, b"\x08" + 7 * b"\x00" + b"notjson!"])
def test_junk_in_the_place_of_weights_names_the_file(folder, content):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name} is truncated or damaged"):
        load_openvla(folder)
    (folder / INDEX).unlink()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_openvla(folder)


@pytest.mark.parametrize("single", [False, True], ids=["shards", "one file"])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_folder_whose_overwriting_was_interrupted_is_refused(folder, kept, single, monkeypatch):
    """Interrupted before its first, second, last small file: the weights are new, the rest is the old checkpoint's."""
    from sb3_tgrpo.openvla import loading

    if single:
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file(load_openvla(folder).state_dict(), folder / "model.safetensors")
        for path in [*folder.glob("model-*"), folder / "model.safetensors.index.json"]:
            path.unlink()
    model, write, written = load_openvla(folder), loading.atomic_write, []

    def interrupted(path, content):
        if len(written) == kept:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "atomic_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_openvla(model, folder, norm_stats={"new": SPATIAL}, max_shard_bytes=150_000)
    assert "config.json" not in written
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_openvla(folder)
    save_openvla(model, folder, norm_stats={"new": SPATIAL}, max_shard_bytes=150_000)
    assert set(load_openvla(folder).norm_stats) == {"new"}


def test_a_folder_without_tokenizer_loads_and_says_so_when_asked():
    model = load_openvla(GOLDEN)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        _ = model.tokenizer


def test_wrong_image_sizes(folder):
    model = load_openvla(folder)
    with pytest.raises(ValueError, match=r"\(batch, 6, 64, 64\)"):
        model.generate_action_tokens(th.zeros(1, 6, 224, 224), [[1, 5]])
    with pytest.raises(ValueError, match="256x256"):
        load_openvla(GOLDEN).preprocess(th.zeros(1, 128, 128, 3, dtype=th.uint8))


def test_adapters_must_be_merged_before_saving(tmp_path):
    model = load_openvla("tiny")
    attach_lora(model, "language")
    with pytest.raises(ValueError, match="merge adapters"):
        save_openvla(model, tmp_path)


def test_which_layers_would_be_four_bit(monkeypatch):
    """A dry run with a stand-in for bitsandbytes that keeps full precision: what is replaced, and that outputs stay."""
    import sys
    import types

    class Linear4bit(th.nn.Linear):
        def __init__(self, inputs, outputs, bias, compute_dtype, quant_type, compress_statistics):
            super().__init__(inputs, outputs, bias=bias)

        def to(self, device):
            return self

    fake = types.ModuleType("bitsandbytes")
    fake.nn = types.SimpleNamespace(
        Linear4bit=Linear4bit,
        Params4bit=lambda data, requires_grad, **_: th.nn.Parameter(data, requires_grad=requires_grad),
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    model = load_openvla("tiny")
    pixels, ids = th.zeros(1, 6, 64, 64), [[1, 260, 261, 259]]
    before = model.generate_action_tokens(pixels, ids)
    with pytest.raises(ValueError, match="needs device='cuda'"):
        quantize_language_model(model, th.device("cpu"))
    quantize_language_model(model, th.device("cuda"))
    replaced = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(replaced) == 7 * 2 and all(name.startswith("language_model.model.layers.") for name in replaced)
    assert model.is_loaded_in_4bit and th.equal(model.generate_action_tokens(pixels, ids)[0], before[0])
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---------------------------------------------------------------------- actions


def test_bins_of_every_token():
    ids = np.arange(31744, 32000)
    values = bin_values(ids, 32000, 256)
    assert values[0] == values[1] == pytest.approx(0.99607843) and values[-1] == pytest.approx(-0.99607843)
    assert bin_values(np.array([31872]), 32000, 256) == 0.0
    assert np.all(np.diff(values[1:]) == pytest.approx(-2 / 255))
    assert np.array_equal(bin_values(np.array([0, 31743, 32000, 32063]), 32000, 256), values[[0, 0, -1, -1]])
    encoded = bin_tokens(np.array([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0]), 32000, 256)
    assert encoded.tolist() == [31999, 31872, 31808, 31745, 31744, 31744]
    assert np.array_equal(bin_tokens(values[1:], 32000, 256), ids[1:])
    # A vocabulary padded to 32064 must not shift the bins.
    assert not np.array_equal(bin_values(ids, 32064, 256), values)


def test_unnormalising_and_the_gripper():
    zeros = unnormalise(bin_values(np.full((1, 7), 31872), 32000, 256), SPATIAL)
    np.testing.assert_allclose(zeros, [[0.096, 0.1071, -0.0027, -0.0016, -0.015, -0.0193, 0.0]], atol=5e-5)
    without_mask = {"action": {"q01": [0.0, 3.0], "q99": [2.0, 3.0]}}
    assert unnormalise(np.array([[1.0, 0.3]]), without_mask).tolist() == [[2.0, 3.0]]  # constants decode exactly
    assert normalise(np.array([[2.0, 3.0]]), without_mask)[0] == pytest.approx([1.0, 0.0])
    ids = np.tile(np.arange(31744, 32000)[:, None], (1, 7))
    gripper = libero_gripper(unnormalise(bin_values(ids, 32000, 256), SPATIAL))[:, 6]
    assert np.array_equal(gripper, np.where(np.arange(31744, 32000) <= 31808, -1.0, 1.0))


# ---------------------------------------------------------------------- tokenizer and prompt


def llama_like_tokenizer() -> Tokenizer:
    """Llama's pipeline with the pieces of two recorded prompts at their real ids."""
    at = {
        "▁In": 512, ":": 29901, "▁What": 1724, "▁action": 3158, "▁should": 881, "▁the": 278, "▁robot": 19964, "▁take": 2125,
        "▁to": 304, "?": 29973, "Out": 3744, "▁": 29871, "▁pick": 5839, "▁up": 701, "▁black": 4628, "▁bow": 12580, "l": 29880,
        "▁between": 1546, "▁plate": 15284, "▁and": 322, "▁r": 364, "ame": 420, "kin": 9089, "▁place": 2058, "▁it": 372,
        "▁on": 373, "▁put": 1925, "▁both": 1716, "▁alphabet": 22968, "▁soup": 22300, "▁tom": 6454, "ato": 1219, "▁sau": 12507,
        "ce": 346, "▁in": 297, "▁basket": 25972,
    }  # fmt: skip
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}, **at}
    free = (i for i in range(40000, 60000))
    merges = []
    for piece in sorted(at, key=lambda piece: not piece.startswith("▁")):
        for end in range(1, len(piece) + 1):
            for part in (piece[:end], piece[end - 1]):
                if part not in vocabulary:
                    vocabulary[part] = next(free)
            if end > 1 and (piece[: end - 1], piece[end - 1]) not in merges:
                merges.append((piece[: end - 1], piece[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Pick up the black bowl between the plate and the ramekin and place it on the plate",
         [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 5839, 701, 278, 4628, 12580, 29880, 1546, 278, 15284, 322,
          278, 364, 420, 9089, 322, 2058, 372, 373, 278, 15284, 29973, 13, 3744, 29901, 29871]),
        ("put both the alphabet soup and the tomato sauce in the basket",
         [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 1716, 278, 22968, 22300, 322, 278, 6454, 1219, 12507,
          346, 297, 278, 25972, 29973, 13, 3744, 29901, 29871]),
    ],
    ids=["35 ids", "29 ids"],
)  # fmt: skip
def test_recorded_prompt_ids(instruction, expected):
    from transformers import PreTrainedTokenizerFast

    tokenizer = llama_like_tokenizer()
    assert prompt_token_ids(tokenizer, instruction) == expected
    assert prompt_token_ids(PreTrainedTokenizerFast(tokenizer_object=tokenizer), instruction) == expected


def test_tiny_tokenizer_knows_liberos_words_and_spells_the_rest():
    tokenizer = build_tiny().tokenizer
    known = prompt_token_ids(tokenizer, "Pick up the orange juice and place it in the basket")
    assert len(known) == 15 and known[0] == 1 and known[-1] == tokenizer.token_to_id("▁") and max(known) < 768
    assert tokenizer.decode(known[1:-1]) == prompt_text("pick up the orange juice and place it in the basket")
    spelled = prompt_token_ids(tokenizer, "fold the Tischtuch über")
    assert 0 not in spelled and tokenizer.decode(spelled[1:-1]) == prompt_text("fold the tischtuch über")
    with pytest.raises(ValueError, match="not Llama's"):
        prompt_token_ids(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")), "a")


# ---------------------------------------------------------------------- tiny


def test_tiny_is_always_the_same_and_leaves_the_global_generator_alone():
    th.manual_seed(0)
    expected = th.rand(3)
    th.manual_seed(0)
    first, second = build_tiny().state_dict(), build_tiny().state_dict()
    assert th.equal(th.rand(3), expected)
    assert all(th.equal(first[name], second[name]) for name in first)


def test_tiny_costs_a_tenth_of_a_gigaflop_per_training_sample():
    from torch.utils.flop_counter import FlopCounterMode

    model = load_openvla("tiny").requires_grad_(True)
    ids = prompt_token_ids(model.tokenizer, "pick up the orange juice and place it in the basket")
    with FlopCounterMode(display=False) as counter:
        model.action_logits(th.zeros(1, 6, 64, 64), [ids], th.full((1, 7), 800)).sum().backward()
    assert 0.05e9 < counter.get_total_flops() < 0.15e9


def test_subtracting_the_mean_image():
    model = build_tiny()
    images = th.randn(1, 6, 64, 64)
    with th.no_grad():
        tower = model.vision_backbone.featurizer
        before = tower.patch_embed(images[:, :3] - 0.5) + tower.pos_embed
        subtract_mean_image(model, th.full((6, 64, 64), 0.5))
        th.testing.assert_close(tower.patch_embed(images[:, :3]) + tower.pos_embed, before, atol=1e-5, rtol=1e-4)


def test_nothing_about_the_vocabulary_is_hard_coded():
    raw = tiny_config()
    raw["text_config"] = {**raw["text_config"], "vocab_size": 512 + 32, "pad_token_id": 512}
    raw.update(pad_to_multiple_of=32, n_action_bins=64)
    config = OpenVLAConfig.from_dict(raw)
    assert (config.action_vocab_begin, config.action_vocab_end) == (448, 512)
