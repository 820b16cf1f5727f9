"""Opening a policy and its tokenizer by a name of the hub or a folder, with TRL's option names."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers

from stp_rs.config.sections import ModelConfig
from stp_rs.errors import CheckpointError, ConfigError, ModelError
from stp_rs.models.base import DiffusionModel, seeded
from stp_rs.models.families import Family, family_named, family_of
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.models.saving import code_hash, opened_as, remember

_TRAITS = ("logit_shift", "family", "mask_token_id", "pad_token_id", "eos_token_ids", "block_size")


def load(  # noqa: PLR0913 - TRL's option names, all by keyword
    model_name_or_path: str | Path,
    *,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    use_peft: bool = False,
    lora_r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    lora_target_modules: Sequence[str] | str | None = None,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    **traits: Any,
) -> tuple[DiffusionModel, Any]:
    """Return (policy, tokenizer) of a model of the hub, of a folder, or of what a trainer saved.

    Args:
        model_name_or_path: `GSAI-ML/LLaDA-8B-Instruct`, a folder that `save_pretrained` wrote, a checkpoint, or a run
            folder, whose last checkpoint is opened. A folder with adapters opens its base as it was opened before them.
        trust_remote_code: run the modelling code that comes with the checkpoint. Never asked for: it is an error
            without it.
        dtype: of the weights, `bfloat16` for example; `auto` is as they were saved.
        revision: a branch, tag or commit of the hub.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`.
        use_peft: train LoRA adapters instead of the weights.
        lora_r: their rank.
        lora_alpha: their scale times the rank.
        lora_dropout: recorded in the adapter; passes of a policy run without dropout.
        lora_target_modules: where they go; the family's projections by default.
        load_in_4bit: weights in nf4 (bitsandbytes, a CUDA device); needs `use_peft` to be trained.
        gradient_checkpointing: keep only the inputs of the blocks for the backward pass.
        device: where the policy goes; by default the CPU, or the first CUDA device for 4-bit weights.
        seed: of the first weights of new adapters.
        traits: what `MaskedLMAdapter` takes by name, `logit_shift=1` for example.

    Raises:
        CheckpointError: there is no such model, or it cannot be opened.
        ModelError: it is no masked-diffusion model, its code may not be run, or an extra is not installed.
    """
    unknown = sorted(set(traits) - set(_TRAITS))
    if unknown:
        raise TypeError(f"load: got {unknown[0]!r}, needs one of {', '.join(_TRAITS)}")
    name = _model_of(str(model_name_or_path))
    noted = opened_as(Path(name))
    adapters = (Path(name) / "adapter_config.json").is_file()
    hub = {"trust_remote_code": trust_remote_code, "revision": revision}
    base = _base_of(name, noted) if adapters else name
    if adapters:
        hub["revision"] = noted.get("revision", revision)
    config = _opened(transformers.AutoConfig, base, hub)
    given_family = traits.get("family") or noted.get("family")
    family = family_of(config) if given_family is None else family_named(given_family)
    for option, value in family.settings:
        setattr(config, option, value)
    options: dict[str, Any] = {"config": config, "dtype": dtype}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if load_in_4bit:
        options |= _four_bits(dtype, device)
    module = _opened(_auto_class(config, family), base, {**hub, **options})
    _check_code(module, noted, name)
    tokenizer = _tokenizer(name if (Path(name) / "tokenizer_config.json").is_file() else base, hub, family)
    if adapters:
        module = _with_saved_adapters(module, name)
        _check_adapters(module, name, use_peft, lora_r, lora_alpha)
    elif use_peft:
        targets = lora_target_modules or family.lora_target_modules
        with seeded(seed):
            module = _with_new_adapters(module, lora_r, lora_alpha, lora_dropout, targets)
    if device is not None and not load_in_4bit:
        module = module.to(device)
    given = {key: value for key, value in traits.items() if value is not None}
    chosen = {key: noted[key] for key in _TRAITS if noted.get(key) is not None} | given
    policy: Any = as_diffusion_model(module, tokenizer, **chosen)
    policy.gradient_checkpointing = gradient_checkpointing
    where = str(Path(base).resolve()) if Path(base).is_dir() else base
    remember(policy.module, base=where, revision=hub["revision"], **chosen)
    return policy, tokenizer


def _model_of(name: str) -> str:
    """Return a name as it is; of a run folder its checkpoint of the highest step."""
    folder = Path(name)
    if not folder.is_dir() or _holds_model(folder):
        return name
    steps = [path for path in folder.glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit()]
    found = [path for path in steps if _holds_model(path)]
    return str(max(found, key=lambda path: int(path.name[len("checkpoint-") :]))) if found else name


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def load_configured(
    config: ModelConfig, path: str | Path, device: str | torch.device | None = None
) -> tuple[DiffusionModel, Any]:
    """Return (policy, tokenizer) of a model, opened as a configuration says."""
    targets: list[str] | str | None = config.lora_target_modules
    if isinstance(targets, str) and "," in targets:
        targets = [name.strip() for name in targets.split(",")]
    return load(
        path,
        trust_remote_code=config.trust_remote_code,
        dtype=config.dtype,
        revision=config.model_revision,
        attn_implementation=config.attn_implementation,
        use_peft=config.use_peft,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_target_modules=targets,
        load_in_4bit=config.load_in_4bit,
        gradient_checkpointing=config.gradient_checkpointing,
        device=device,
        seed=getattr(config, "seed", 0),
        logit_shift=config.logit_shift,
        block_size=config.block_size,
    )


def check_unopened(config: ModelConfig, instead: str) -> None:
    """Refuse options about opening a model where none is opened; `instead` says what there is, and what is needed.

    Raises:
        ConfigError: one of them is not its default.
    """
    default = ModelConfig()
    for name in (field.name for field in fields(ModelConfig) if field.name != "gradient_checkpointing"):
        got = getattr(config, name)
        if got != getattr(default, name):
            raise ConfigError(f"{name}: got {got!r} for {instead}")


def load_policy(path: str | Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a local folder that a trainer or `save_pretrained` wrote; nothing is downloaded.

    Raises:
        CheckpointError: the folder is missing or incomplete.
    """
    folder = Path(_model_of(str(path)))
    if not _holds_model(folder):
        raise CheckpointError(f"{folder}: no config.json; give a folder written by save_pretrained or a run folder")
    policy, tokenizer = load(folder)
    return policy.module, tokenizer


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or a model of the hub (at a revision), without its model.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    return _tokenizer(str(path), {"trust_remote_code": trust_remote_code, "revision": revision}, None)


def _opened(kind: Any, name: str, options: dict[str, Any]) -> Any:
    """Return what `from_pretrained` gives; a folder is never looked up on the hub."""
    local = Path(name).is_dir()
    try:
        return kind.from_pretrained(name, local_files_only=local, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: it comes with its own code, which is run only with trust_remote_code=True "
                "(--trust_remote_code true); read it first"
            ) from error
        if isinstance(error, (OSError, ValueError)):
            raise CheckpointError(f"{name}: cannot be opened: {error}") from error
        raise ModelError(
            f"{name}: its code does not run with transformers {transformers.__version__} ({type(error).__name__}: "
            f"{error}); models whose code predates transformers 5 need 'transformers<5' (docs/models.md)"
        ) from error


def _auto_class(config: Any, family: Family) -> Any:
    """Return the class of transformers that opens a model: the family's, else one that its own code is listed under."""
    listed = getattr(config, "auto_map", None) or {}
    for name in (family.auto_class, "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel"):
        if name in listed:
            return getattr(transformers, name)
    return getattr(transformers, family.auto_class)


def _base_of(folder: str, noted: dict[str, Any]) -> str:
    """Return where the base of saved adapters is."""
    from peft import PeftConfig

    base = noted.get("base") or PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise CheckpointError(
            f"{folder}: it holds adapters and does not say of which model; open the model and pass "
            "peft.PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    return str(base)


def _check_code(module: Any, noted: dict[str, Any], name: str) -> None:
    """Refuse modelling code that is not the code that a checkpoint was trained with."""
    before, now = noted.get("code", ""), code_hash(module)
    if before and before != now:
        raise CheckpointError(
            f"{name}: its modelling code has changed since it was saved (hash {before}, now {now or 'none'}); pin the "
            "revision, or delete stp_policy.json after reading the change"
        )


def _tokenizer(name: str, hub: dict[str, Any], family: Family | None) -> Any:
    tokenizer = _opened_tokenizer(name, hub)
    if family is not None and tokenizer.mask_token is None and family.mask_token in tokenizer.get_vocab():
        tokenizer.mask_token = family.mask_token
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _opened_tokenizer(name: str, hub: dict[str, Any]) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir(), **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: its tokenizer cannot be opened: {error}") from error


def _with_saved_adapters(module: Any, folder: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(module, folder, is_trainable=True)


def _check_adapters(module: Any, name: str, use_peft: bool, rank: int, alpha: int) -> None:
    """Refuse another rank or scale than saved adapters have, where adapters are configured."""
    saved = module.peft_config["default"]
    wanted = {"r": rank, "lora_alpha": alpha}
    for option, got in wanted.items():
        there = getattr(saved, option, got)
        if use_peft and there != got:
            raise ModelError(
                f"lora_{option.removeprefix('lora_')}: got {got} for {name}, whose adapters have {there}; set it to "
                f"{there}, or give the model without its adapters"
            )


def _with_new_adapters(module: Any, rank: int, alpha: int, dropout: float, targets: Any) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError("use_peft: peft is not installed; pip install 'stp-rs[peft]'") from error
    names = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    try:
        return get_peft_model(module, config)
    except ValueError as error:
        raise ModelError(
            f"lora_target_modules: got {targets}, which {type(module).__name__} does not have; pass names of its "
            "linear layers, or 'all-linear'"
        ) from error


def _four_bits(dtype: str | torch.dtype, device: str | torch.device | None) -> dict[str, Any]:
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore] # an extra
    except ImportError as error:
        raise ModelError("load_in_4bit: bitsandbytes is not installed; pip install bitsandbytes") from error
    del bitsandbytes
    if not torch.cuda.is_available():
        raise ModelError("load_in_4bit: needs a CUDA device, got none")
    compute = torch.bfloat16 if dtype == "auto" else dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    make: Any = transformers.BitsAndBytesConfig
    bits = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": bits, "device_map": {"": 0 if device is None else device}}
