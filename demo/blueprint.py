"""The demo model before training: its tokenizer, its shape, its image processor.

The class, the special tokens, the chat template's order and the image path are those of the GLM-4.1V
family; only the sizes and the small vocabulary are our own. Knows nothing of pictures or of training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

#: The GLM-4.1V family's special tokens, in its order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")

#: user → image → text, whatever the order of the message's parts: the family's own order.
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

PATCH, MERGE = 14, 2
#: Pixels; the recipe scales the long side down to this before the model sees the image.
MAX_SIDE = 336
#: Smaller pictures are scaled up to this area (pixels), that of 336 x 224: its letters then fill as many
#: patches as a large picture's do.
MIN_AREA = 75_000


def build_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Bytes, the special tokens, and one token for each word that captions are made of.

    Text is read letter by letter, so that the model must look; a caption costs one step a word.
    Every string has exactly one encoding and comes back as it was.
    """
    words = Counter(word for caption in captions for word in re.findall(r" ?[A-Za-z]+", caption))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    # Only words after a space: the first letters of a line of text stay letters.
    frequent = sorted(word for word, count in words.items() if count >= 5 and word.startswith(" ") and len(word) > 2)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in frequent])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Glm4vConfig:
    """8.5 million parameters; every quantised size is a multiple of 64."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    vocab_size = -(-len(tokenizer) // 64) * 64
    stop = [ids[token] for token in STOP_TOKENS]
    return Glm4vConfig(
        text_config={
            "vocab_size": vocab_size,
            "initializer_range": 0.04,  # about 1 / sqrt(hidden): 0.02 is for widths in the thousands
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 6, 6],
            },
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": stop,
        },
        vision_config={
            "depth": 8,
            "initializer_range": 0.04,
            "hidden_size": 256,
            "num_heads": 4,
            "image_size": 336,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 256,
            "intermediate_size": 512,
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
        tie_word_embeddings=False,
    )


def build_image_processor() -> Glm4vImageProcessorPil:
    """The family's processor; limits count two frames an image, as the family does."""
    return Glm4vImageProcessorPil(size={"shortest_edge": 2 * MIN_AREA, "longest_edge": 2 * MAX_SIDE * MAX_SIDE})


def build_model(config: Glm4vConfig) -> Glm4vForConditionalGeneration:
    """The untrained model, in fp32, with generation settings that stop where the family stops."""
    model = Glm4vForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.generation_config.do_sample = False
    return model
