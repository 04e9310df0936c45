"""Which model type follows which rule. A type that is not here is not understood: nobody has read its code.

`python -m tools.engines.model_types` compares this with every model type that transformers knows.
"""

from __future__ import annotations

from attnkit.select import model_decoders as decoders
from attnkit.select import model_encoders as encoders
from attnkit.select import model_hybrids as hybrids
from attnkit.select.model_encoders import tower
from attnkit.select.model_reading import HEADS, Rule

_MAMBA = "state-space (Mamba)"

_BY_RULE: tuple[tuple[Rule, str], ...] = (
    (
        decoders.decoder,
        "apertus apertus1p5_text arcee aria_text biogpt bitnet codegen cohere ctrl deepseek ernie4_5 ernie4_5_moe "
        "exaone flex_olmo glm glm4 glm4_moe glm4v_text glm4v_moe_text glm_ocr_text gpt2 gpt-sw3 gpt_neox "
        "gpt_neox_japanese gptj helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 "
        "hyperclovax internlm internlm2 internlm3 iquestcoder jais2 llama minicpm minimax_m2 nanochat nemotron "
        "olmo olmo2 olmoe openai-gpt opt orion persimmon phi qwen2_vl_text qwen3_vl_text qwen3_vl_moe_text "
        "ernie4_5_vl_moe_text seed_oss solar solar_open stablelm telechat2 xglm xverse emu3_text_model "
        "granite4_vision_text paddleocr_vl_text bailing_moe bailing_moe_v2 sarvam_moe telechat telechat3 TeleFLM PanguEmbedded",
    ),
    (decoders.granite(swa=False), "granite granitemoe granitemoeshared"),
    (decoders.granite(swa=True), "granite_swa granitemoe_swa"),
    (decoders.all_slide, "arctic ministral ministral3 mistral mixtral phi3 phimoe qwen3_moe starcoder2"),
    (
        decoders.from_max_window_layers,
        "dots1 mimo minicpmv qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe qwen3 qwen2_vl qwen2_5_vl",
    ),
    (decoders.every(4, "global_attn_every_n_layers"), "afmoe"),
    (decoders.every(4, "sliding_window_pattern", "_sliding_window_pattern", own_beside=True), "cohere2 cohere2_moe"),
    (decoders.every(4, "sliding_window_pattern", "_sliding_window_pattern"), "exaone4 exaone_moe"),
    (decoders.every(4, full_at=0), "cwm"),
    (decoders.every(2), "gemma2 vaultgemma"),
    (decoders.every(6, "sliding_window_pattern", "_sliding_window_pattern"), "gemma3_text"),
    (decoders.every(2, sinks=True), "gpt_oss"),
    (decoders.every(4), "olmo3"),
    (decoders.every(1), "gemma"),
    (decoders.gemma4, "gemma4_text"),
    (decoders.llama4, "llama4_text"),
    (decoders.smollm3, "smollm3"),
    (decoders.mimo_v2, "mimo_v2_flash mimo_v2"),
    (decoders.gpt_neo, "gpt_neo"),
    (decoders.alibi, "bloom"),
    (decoders.mpt, "mpt"),
    (decoders.dbrx, "dbrx"),
    (decoders.falcon, "falcon RefinedWeb RefinedWebModel"),
    (decoders.gpt_bigcode, "gpt_bigcode"),
    (decoders.chatglm, "chatglm"),
    (decoders.nemotron_nas, "nemotron-nas"),
    (decoders.openelm, "openelm"),
    (decoders.differential, "diffllama"),
    (decoders.phi4flash, "phi4flash"),
    (hybrids.mla, "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_k2 longcat_flash sarvam_mla"),
    (hybrids.kimi_linear, "kimi_linear"),
    (
        hybrids.hybrid(hybrids.interval("full_attention_interval", 4), "full_attention_interval"),
        "qwen3_next qwen3_5_text qwen3_5_moe_text",
    ),
    (hybrids.hybrid(hybrids.jamba, "attn_layer_period", "attn_layer_offset"), "jamba"),
    (hybrids.hybrid(hybrids.bamba, "attn_layer_indices"), "bamba"),
    (hybrids.hybrid(hybrids.lfm2, "full_attn_idxs"), "lfm2"),
    (hybrids.hybrid(hybrids.missing_words), "granitemoehybrid lfm2_moe olmo_hybrid"),
    (hybrids.nemotron_h, "nemotron_h"),
    (hybrids.zamba2, "zamba2"),
    (hybrids.both_in_every_layer, "falcon_h1"),
    (hybrids.attention_free(_MAMBA), "mamba falcon_mamba"),
    (hybrids.attention_free("state-space (Mamba 2)"), "mamba2"),
    (hybrids.attention_free("RWKV"), "rwkv"),
    (hybrids.attention_free("Fourier transform"), "fnet"),
    (
        encoders.encoder,
        "albert bert bert-generation camembert chinese_clip_text_model data2vec-text distilbert electra ernie esm "
        "eurobert gte ibert jina_embeddings_v3 megatron-bert nomic_bert rembert roberta roberta-prelayernorm "
        "roc_bert splinter xlm-roberta xlm-roberta-xl xmod",
    ),
    (encoders.modernbert, "modernbert"),
    (
        encoders.encoder_decoder,
        "bart blenderbot blenderbot-small fsmt m2m_100 marian mbart mvp nllb-moe pegasus plbart speech_to_text whisper",
    ),
    (encoders.t5, "mt5 t5 umt5"),
    (encoders.mllama, "mllama_text_model"),
    (
        tower("vision"),
        "aimv2_vision_model blip_2_vision_model clip_vision_model dinov2 glm4v_moe_vision glm4v_vision "
        "idefics2_vision idefics3_vision internvl_vision intern_vit_6b llama4_vision_model mlcd_vision_model "
        "paddleocr_vl_vision pixtral qwen3_5_moe_vision qwen3_5_vision qwen3_vl_moe_vision qwen3_vl_vision "
        "siglip2_vision_model siglip_vision_model smolvlm_vision gemma4_vision ernie4_5_vl_moe_vision "
        "glm_ocr_vision ovis2_vision",
    ),
    (tower("vision", hidden=("embed_dim",)), "qwen2_vl_vision"),
    (
        tower(
            "vision",
            note="the vision tower attends within windows of the image in most blocks: shorter sequences, same kernels",
        ),
        "qwen2_5_vl_vision qwen2_5_omni_vision_encoder",
    ),
    (tower("vision", heads=("attention_heads",), more=("num_global_layers",)), "mllama_vision_model"),
    (
        tower("audio", heads=("encoder_attention_heads", *HEADS)),
        "audioflamingo3_encoder qwen2_5_omni_audio_encoder qwen2_audio_encoder qwen3_omni_moe_audio_encoder voxtral_encoder",
    ),
)

RULES: dict[str, Rule] = {name: rule for rule, names in _BY_RULE for name in names.split()}
"""Model type → rule, for language models and towers."""

TOWER_NAMES = {"vision": "vision_config", "audio": "audio_config"}
"""Role → the field in which such a tower stands."""

TEXT_NAMES = ("text_config", "llm_config", "language_config")
"""Fields in which a language model stands inside a multimodal one."""

_WRAPPERS = (
    "audioflamingo3 aya_vision cohere2_vision ernie4_5_vl_moe gemma3 gemma4 glm4v glm4v_moe glm_ocr idefics3 "
    "internvl internvl_chat kimi_k25 lighton_ocr llama4 llava llava_next llava_next_video llava_onevision "
    "minicpmv mistral3 mllama ovis2 paddleocr_vl qwen2_5_omni_thinker qwen2_5_vl qwen2_audio qwen2_vl qwen3_5 "
    "qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm vipllava voxtral"
)
WRAPPERS: dict[str, str] = dict.fromkeys(_WRAPPERS.split(), "") | {"qwen2_5_omni": "thinker_config", "paligemma": ""}
"""Multimodal model types: a language model, and towers; the value is the field that holds both, where it is one inside."""

PREFIX_LM = frozenset({"paligemma"})
"""Wrappers whose prompt is seen without a causal mask."""

_IGNORED_PARTS = (
    "talker_config token2wav_config code2wav_config quantization_config compression_config generation_config "
    "rope_scaling rope_parameters task_specific_params auto_map id2label label2id vq_config"
)
IGNORED_PARTS = frozenset(_IGNORED_PARTS.split())
"""Parts that hold no attention of the model that an engine serves (speech output, bookkeeping)."""

SAME_TOWER = {"qwen2_vl": "qwen2_vl_vision", "qwen2_5_vl": "qwen2_5_vl_vision", "qwen3_vl": "qwen3_vl_vision"} | {
    "qwen3_vl_moe": "qwen3_vl_moe_vision",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "qwen3_5": "qwen3_5_vision",
    "qwen3_5_moe": "qwen3_5_moe_vision",
    "glm4v": "glm4v_vision",
    "idefics3": "idefics3_vision",
    "smolvlm": "smolvlm_vision",
    "internvl": "internvl_vision",
    "gemma4": "gemma4_vision",
}
"""Model types that files give a tower → the tower's own."""

FLAT_TEXT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "minicpmv": "qwen2"}
"""Wrappers whose files may have the language model's fields at the top → its model type."""
