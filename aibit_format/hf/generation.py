"""Checks the values of ``generation_config.json``, which transformers takes as they are until a text is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LoadError

_MOST = (1 << 31) - 1
_MOST_BEAMS = 1 << 10  # each takes the memory of a text

_Check = Callable[[Any], bool]


def _whole(most: int) -> _Check:
    return lambda value: type(value) is int and 0 <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST <= value <= _MOST


def _flag(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _id(value: Any) -> bool:
    return type(value) is int and -1 <= value <= _MOST


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _either(*checks: _Check) -> _Check:
    return lambda value: any(check(value) for check in checks)


# Kind of value -> its check, and the keys that have it. A key that is not here does not reach transformers.
_KINDS: dict[str, tuple[_Check, str]] = {
    "a whole number": (_whole(_MOST), """
        max_length max_new_tokens min_length min_new_tokens max_cache_len top_k no_repeat_ngram_size
        encoder_no_repeat_ngram_size num_assistant_tokens prompt_lookup_num_tokens max_matching_ngram_size
        assistant_early_exit assistant_lookbehind target_lookbehind prefill_chunk_size"""),
    f"a whole number up to {_MOST_BEAMS}": (_whole(_MOST_BEAMS), "num_beams num_beam_groups num_return_sequences"),
    "a number": (_number, """
        max_time temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
        encoder_repetition_penalty length_penalty guidance_scale assistant_confidence_threshold
        assistant_ensemble_weight penalty_alpha diversity_penalty"""),
    "true or false": (_flag, """
        do_sample use_mtp use_cache renormalize_logits remove_invalid_values token_healing output_attentions
        output_hidden_states output_scores output_logits return_dict_in_generate is_assistant disable_compile
        low_memory _from_model_config"""),
    "text": (_text, "cache_implementation num_assistant_tokens_schedule speculation_type transformers_version"),
    "true, false or text": (_either(_flag, _text), "early_stopping"),
    "text or a list of text": (_either(_text, _list_of(_text)), "stop_strings"),
    "an id or a list of ids": (_either(_id, _list_of(_id)), """
        pad_token_id bos_token_id eos_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id"""),
    "a list of ids": (_list_of(_id), "suppress_tokens begin_suppress_tokens"),
    "a list of lists of ids": (_list_of(_list_of(_either(_id, _list_of(_id)))), "bad_words_ids force_words_ids"),
    "a list": (lambda value: isinstance(value, list), "sequence_bias exponential_decay_length_penalty"),
    "text, or a list of whole numbers": (_either(_text, _list_of(_whole(_MOST))), "dola_layers"),
    "an object": (lambda value: isinstance(value, dict), "watermarking_config"),
}  # fmt: skip
_CHECKS = {key: (kind, check) for kind, (check, keys) in _KINDS.items() for key in keys.split()}


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a parsed ``generation_config.json`` that are known, each of its kind.

    Raises:
        LoadError: names the key, its value and what is expected.
    """
    for key, value in values.items():
        if value is not None and key in _CHECKS and not _CHECKS[key][1](value):
            raise LoadError(f"generation_config.json: {key} is {str(value)[:80]!r}, expected {_CHECKS[key][0]}")
    return {key: value for key, value in values.items() if key in _CHECKS}
