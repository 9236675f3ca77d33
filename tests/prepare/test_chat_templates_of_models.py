"""Conversations become the tokens that transformers makes of them, with templates and tokenizers of known models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sheaf.prepare.encoder import Encoder
from sheaf.prepare.rendering import Chats, Rendering, find_template

TEXT = ["The tide is late. Why is the ferry late, and who asked?", "system user assistant think INST model final"] * 3
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Why is the ferry late?"}, {"role": "assistant", "content": "The tide."}],
    [
        {"role": "user", "content": " Why?\n"},
        {"role": "assistant", "content": "The tide.\n\n  x = 1\n"},
        {"role": "user", "content": "Late 🌊 ü"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n 你好"},
    ],
]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}{% generation %}"
    "{{ '<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if loop.last and m.role == 'assistant' %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(*control: str, added: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=list(control), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(x, normalized=False, special=False) for x in added])
    return tokenizer


def sentence_piece(*control: str, prepend: str) -> Tokenizer:
    """As Llama 2 and Mistral are converted: a blank is "▁", and one stands before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if prepend == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    special = ["<unk>", *control, *(f"<0x{i:02X}>" for i in range(256))]
    words = [word for line in TEXT for word in line.split()]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=330, special_tokens=special))
    return tokenizer


def model(name: str) -> tuple[Tokenizer, str, dict[str, str]]:
    match name:
        case "llama3":
            control = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
            return byte_level(*control), LLAMA3, {"bos_token": control[0], "eos_token": control[3]}
        case "mistral-first" | "mistral-always" | "mistral-never" | "mistral-normalizer":
            made = sentence_piece("<s>", "</s>", prepend=name.removeprefix("mistral-"))
            return made, MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}
        case "mistral-v3":
            made = sentence_piece("<s>", "</s>", "[INST]", "[/INST]", prepend="first")
            return made, MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}
        case "gpt-oss":
            control = ("<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>")
            return byte_level(*control), GPT_OSS, {"eos_token": "<|endoftext|>"}
        case "qwen3":
            made = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", added=("<think>", "</think>"))
            return made, QWEN3, {"eos_token": "<|im_end|>"}
        case _:
            ends = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
            made = byte_level(*ends.values(), "<|endoftext|>", added=("<｜User｜>", "<｜Assistant｜>"))
            return made, DEEPSEEK, ends


MODELS = (
    "llama3",
    "mistral-first",
    "mistral-always",
    "mistral-never",
    "mistral-normalizer",
    "mistral-v3",
    "gpt-oss",
    "qwen3",
    "deepseek",
)


def both(name: str, folder: Path) -> tuple[PreTrainedTokenizerFast, Chats]:
    """Theirs and ours, from one folder."""
    tokenizer, template, special = model(name)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return theirs, Chats(Rendering("", *find_template("auto", str(folder))), Encoder(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_masks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, chats = both(name, tmp_path)
    for talk in TALKS:
        marked = "{% generation %}" in theirs.chat_template
        expected = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=marked)
        got = chats.encode(talk)
        ids = expected["input_ids"]
        assert got.ids[: len(ids)].tolist() == ids
        assert len(got.ids) - len(ids) <= 1  # the end of the text, where the template's end is another token
        if marked:
            assert got.loss[: len(ids)].tolist() == expected["assistant_masks"]


def test_a_turn_ends_with_its_last_control_token_not_with_those_inside_it(tmp_path: Path) -> None:
    theirs, chats = both("gpt-oss", tmp_path)
    assert theirs.convert_ids_to_tokens(chats.ends_of_turn()) == ["<|end|>"]


def test_thoughts_are_said_from_where_the_prompt_ends(tmp_path: Path) -> None:
    theirs, chats = both("qwen3", tmp_path)
    for talk, thoughts in zip(TALKS, ("<think>\n\n</think>\n\n", "<think>\nhm\n</think>\n\n"), strict=True):
        got, prompt = chats.encode(talk), chats.prompt(talk[:-1])
        last = int(got.loss.nonzero()[0][0]) if len(talk) == 2 else len(prompt)
        assert got.ids[: len(prompt)].tolist() == prompt.tolist() and last == len(prompt)
        assert got.loss[last:-2].all()  # what follows is a line end and the end of the text
        assert (
            theirs.decode(got.ids[last:-2])
            == thoughts + talk[-1]["content"].split("</think>")[-1].lstrip("\n") + "<|im_end|>"
        )


def test_what_looks_like_a_control_token_is_one_whatever_the_file_calls_it(tmp_path: Path) -> None:
    theirs, chats = both("deepseek", tmp_path)
    user, assistant = theirs.convert_tokens_to_ids(["<｜User｜>", "<｜Assistant｜>"])
    ids = chats.encode([{"role": "user", "content": "a<｜User｜>b<｜Assistant｜>"}, TALKS[0][1]]).ids.tolist()
    assert (ids.count(user), ids.count(assistant)) == (1, 1)
    assert user not in Encoder(tmp_path / "tokenizer.json").encode("a web page with <｜User｜> in it").tolist()
