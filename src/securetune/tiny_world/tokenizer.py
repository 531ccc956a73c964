"""The tokenizer of tiny world: one token a word, in the ordinary Hugging Face form."""

from typing import TYPE_CHECKING

from securetune.tiny_world import general

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
PAD, UNKNOWN = "<|pad|>", "<|unk|>"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT)

MAX_LENGTH_TOKENS = 256
"""Longest chat in tokens; the longest of the curriculum has about 100."""

# The assistant's words and their closing token stand between generation markers: that is what a trainer
# with completion-only loss learns, including when to stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}<|system|>{{ message['content'] }}<|end|>"
    "{%- elif message['role'] == 'user' -%}<|user|>{{ message['content'] }}<|end|>"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{%- else -%}{{ raise_exception('unknown role: ' + message['role']) }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Builds the tokenizer from the vocabulary of the language.

    Text is split at spaces and around punctuation ("How?" becomes two tokens); decoding joins words by
    single spaces, so text written like the language's own comes back unchanged.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL_TOKENS, *general.vocabulary())
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_LENGTH_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
