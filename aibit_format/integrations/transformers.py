"""Lets ``from_pretrained`` of transformers take ``.aibit`` files, after ``register()``.

transformers has no way for a file that is a whole model, so that these methods are replaced, once, by ones that look at
the path first; any other path goes where it went before. Nothing is replaced until ``register`` is called.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..container.layout import SIGNATURE
from ..errors import LoadError
from ..formats.files import begins_with
from ..hf import compat
from ..io import hub

__all__ = ["register", "unregister"]

_Load = Callable[..., Any]
# Arguments of ``from_pretrained`` that say where a repository is, and how its files are read: a file needs none.
_OF_FILES = frozenset({
    "cache_dir", "force_download", "local_files_only", "token", "revision", "use_safetensors", "low_cpu_mem_usage",
    "trust_remote_code", "variant", "weights_only", "code_revision", "_from_pipeline", "_commit_hash", "_from_auto",
    "proxies", "subfolder", "use_fast", "tokenizer_type", "config", "generation_config", "adapter_kwargs",
})  # fmt: skip
_OF_LOAD = frozenset({
    "device_map", "dtype", "torch_dtype", "attn_implementation", "weight_only", "activations", "trainable",
})  # fmt: skip
_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
_replaced: list[tuple[type, str, Any]] = []


def register() -> None:
    """Have ``from_pretrained`` of models, tokenizers, configs and generation configs, and ``pipeline``, take files.

    A path, a URL or a name on a hub (``hf://owner/name/file``) that ends in ``.aibit`` is taken, and any file that
    begins as one does. Calling it again changes nothing; ``unregister`` takes it back.

    Raises:
        ImportError: transformers is not installed.
    """
    if _replaced:
        return
    import transformers

    doors: tuple[tuple[type, _Load], ...] = (
        (compat.automatic_model(), _model), (transformers.PreTrainedModel, _model),
        (transformers.AutoTokenizer, _tokenizer), (transformers.PreTrainedTokenizerBase, _tokenizer),
        (transformers.AutoConfig, _config),
        (transformers.PreTrainedConfig, _config), (transformers.GenerationConfig, _generation),
    )  # fmt: skip
    for owner, load in doors:
        before = inspect.getattr_static(owner, "from_pretrained")
        _replaced.append((owner, "from_pretrained", before))
        owner.from_pretrained = _looking(before, load)  # type: ignore[attr-defined]


def unregister() -> None:
    """Give transformers its own methods back."""
    while _replaced:
        owner, name, before = _replaced.pop()
        setattr(owner, name, before)


def _looking(before: Any, load: _Load) -> Any:
    """Return a class method that loads files of ours, and calls the one before for anything else."""
    function = before.__func__

    @functools.wraps(function)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        if _is_ours(pretrained_model_name_or_path):
            return load(cls, os.fspath(pretrained_model_name_or_path), **options)
        return function(cls, pretrained_model_name_or_path, *args, **options)

    return classmethod(from_pretrained)


def _is_ours(path: Any) -> bool:
    if not isinstance(path, (str, os.PathLike)):
        return False
    name = os.fspath(path)
    if os.path.isfile(name):
        return begins_with(name, SIGNATURE)
    return isinstance(name, str) and name.endswith(".aibit")


def _model(cls: type, path: str, **options: Any) -> Any:
    """Load the model of a file as a class of transformers, or an automatic one, has it.

    Raises:
        LoadError: an argument has no meaning here, or the file holds a model of another class.
    """
    from ..torch.load.model import load_model

    wants_info = options.pop("output_loading_info", False)
    if options.get("max_memory") is not None:
        raise LoadError(f"{path}: max_memory: a file is loaded on one device; say which: device_map={{'': 'cuda:0'}}")
    unknown = sorted(key for key, value in options.items() if key not in _OF_LOAD | _OF_FILES and value is not None)
    if unknown:
        raise LoadError(
            f"{path}: {', '.join(unknown)}: not an argument for an .aibit file, which says how its weights are stored; "
            f"known: {', '.join(sorted(_OF_LOAD))}"
        )
    given = {key: value for key, value in options.items() if key in _OF_LOAD and value is not None}
    given.setdefault("dtype", given.pop("torch_dtype", None))
    found = _as(cls, load_model(hub.local(path), **_devices(given)), path)
    return (found, {key: [] for key in _INFO}) if wants_info else found


def _devices(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with a device in the place of a map that names one."""
    found = dict(options)
    asked = found.pop("device_map", None)
    if asked is None:
        return found
    return found | ({"device_map": asked} if isinstance(asked, dict) or asked == "auto" else {"device": asked})


def _as(cls: type, model: Any, path: str) -> Any:
    """Return a model, or its body, as the class that was asked."""
    wanted = compat.classes_wanted(cls, model.config)
    for found in (model, model.base_model):
        if isinstance(found, wanted):
            return found
    names = ", ".join(each.__name__ for each in wanted) or "no class of this family"
    raise LoadError(f"{path}: holds {type(model).__name__}, and {cls.__name__} wants {names}")


def _tokenizer(_: type, path: str, **options: Any) -> Any:
    from ..torch.tokenizer import load_tokenizer

    made = load_tokenizer(path)
    for key, value in options.items():
        if key not in _OF_FILES and value is not None:
            setattr(made, key, value)
    return made


def _config(cls: type, path: str, **options: Any) -> Any:
    """Return the config of a file, without a look at its weights."""
    from ..torch.load.build import read_config

    wants_rest = options.pop("return_unused_kwargs", False)
    found, _ = read_config(path)
    rest = {}
    for key, value in options.items():
        if key in _OF_FILES:
            continue
        if hasattr(found, key):
            setattr(found, key, value)
        else:
            rest[key] = value
    return (found, rest) if wants_rest else found


def _generation(cls: type, path: str, *_: Any, **options: Any) -> Any:
    from ..torch.load.build import read_config

    found = read_config(path)[1] or cls()
    for key, value in options.items():
        if hasattr(found, key):
            setattr(found, key, value)
    return found
