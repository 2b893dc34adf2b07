"""Finding out that the server answered a shorter prompt than the one it was sent."""

from __future__ import annotations

from llm_hub.errors import ContextOverflow
from llm_hub.messages import ChatRequest
from llm_hub_ollama.settings import OllamaSettings
from llm_hub_ollama.wire import Answer

__all__ = ["cut_prompt", "fewest_tokens"]

# A request says `truncate: false`, so a server should refuse a prompt that is too long. It does not where it does not
# know the word (before 0.12.6, or another server that speaks this API), and some paths through it cut all the same.
# The answer then comes with status 200, and the number of prompt tokens is the only trace. What the check relies on:
#
# * Tokens do not span words: tokenizers split text at whitespace before they look for tokens, so a text has at least
#   as many tokens as it has words. (Those that were trained to join words are rare; for them there is the setting
#   detect_cut_prompts.) Images, roles and the rest of the template only add tokens.
# * Assistant turns are not counted: templates and the server itself drop reasoning from them on purpose
#   (filterThinkTags in server/routes.go), which is no loss.
# * prompt_eval_count holds the tokens that came from the prompt cache too. It has done so since 0.2 (before, a cached
#   prompt had a smaller count or none) with the exception of 0.30.0 (ollama pull requests 5371 and 16428); the plugin's
#   manifest lists those versions as bad. A missing count says nothing and is not checked.
#
# The bound is low (English has about 1.3 tokens a word), so a small cut goes unnoticed; but Ollama does not cut a
# little: it drops whole messages, and half of what does not fit.


def cut_prompt(request: ChatRequest, answer: Answer, settings: OllamaSettings) -> ContextOverflow | None:
    """The error if this is the answer to a prompt that was cut, with the tokens it has at least and the limit."""
    count = answer.prompt_eval_count
    if not count:
        return None
    least = fewest_tokens(request, more_than=count)
    if least <= count:
        return None
    num_ctx = settings.profile(request.model).num_ctx if request.model else None
    return ContextOverflow(
        f"the prompt was cut in silence: it has at least {least} tokens, of which the server read {count}"
        + (f" (num_ctx is {num_ctx})" if num_ctx else ""),
        tokens=least,
        limit=num_ctx or count,
        hint="Shorten the prompt, or raise num_ctx in the profile of the model.",
    )


def fewest_tokens(request: ChatRequest, *, more_than: int = 0) -> int:
    """A lower bound of the tokens of the prompt; `more_than` lets it stop early where that cannot be exceeded."""
    texts = [text for message in request.messages if message.role != "assistant" and (text := message.text)]
    # Words need separators between them. Counting single characters is fifty times faster than splitting, and settles
    # nearly every case; only where blanks outnumber the tokens (a cut, or indented code) must it be done in full.
    blanks = sum(text.count(" ") + text.count("\n") + text.count("\t") + text.count("\r") for text in texts)
    if blanks + len(texts) <= more_than:
        return 0
    # Only ASCII whitespace separates here (bytes.split), as every tokenizer agrees about that.
    return sum(len(text.encode(errors="replace").split()) for text in texts)
