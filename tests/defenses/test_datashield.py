"""DataShield: the activations, the direction, the layer, the scores, and which rows go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SUPPORTED, make_architecture
from data_cases import rows_of_a_user, write_files
from tiny_models import make_tiny_tokenizer

from securetune.config import ModelSettings, ProbeSettings
from securetune.data.built_in_answers import exchange
from securetune.data.prompts import prompt_of_row
from securetune.defenses import DataContext, find_data_defense
from securetune.defenses.datashield.activations import AnswerTokens, answer_tokens, layer_states
from securetune.defenses.datashield.compliance import (
    AnswerStates,
    explained_share,
    find_direction,
    mean_difference,
    separation,
)
from securetune.defenses.datashield.contrast import Contrast, contrast_tokens, load_contrast, read_pairs
from securetune.errors import ConfigError, DataError
from securetune.models import ChatModel, load, render_prompt
from securetune.models.layer_weights import decoder_layers

ROWS = rows_of_a_user()


def test_the_answer_begins_behind_the_prompt(tiny_chat_model: ChatModel) -> None:
    """Prompt tokens are those of the rendered prompt, answer tokens those of the answer's words without its end."""
    tokenizer = tiny_chat_model.tokenizer
    (row,) = answer_tokens(tokenizer, ROWS[:1], 64)
    assert row is not None
    prompt = render_prompt(tokenizer, ROWS[0]["messages"][:-1])
    assert row.token_ids[: row.answer_begins] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row.token_ids[row.answer_begins :]).split() == ROWS[0]["messages"][1]["content"].split()


def test_of_several_turns_the_last_answer_counts(tiny_chat_model: ChatModel) -> None:
    """What stands before the last answer, earlier answers too, is the prompt."""
    turns = [*ROWS[0]["messages"], *ROWS[1]["messages"]]
    (row,) = answer_tokens(tiny_chat_model.tokenizer, [{"messages": turns}], 64)
    assert row is not None
    words = tiny_chat_model.tokenizer.decode(row.token_ids[row.answer_begins :]).split()
    assert words == turns[-1]["content"].split()


@pytest.mark.parametrize("kind", SUPPORTED)
def test_states_are_those_of_the_model(kind: str) -> None:
    """Batched, padded and stopped early, they equal the hidden states of each row by itself, in every architecture."""
    tokenizer = make_tiny_tokenizer()
    config, changes = SUPPORTED[kind]
    model = make_architecture(config, changes, vocab_size=len(tokenizer)).eval()
    chat = ChatModel(model, tokenizer, ModelSettings(), identity_of_nothing())
    rows = [AnswerTokens([4, 9, 8, 7, 5, 6], 3), AnswerTokens([4, 8, 7], 1), AnswerTokens([9, 7, 6, 5], 3)]
    assert len(decoder_layers(model)) == model.config.get_text_config().num_hidden_layers == 2
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for batch in layer_states(chat, rows, [1], batch_size=2):
        for place, row in enumerate(batch.rows):
            found[row] = (batch.answers[0, place], batch.before[0, place])
    for place, row in enumerate(rows):
        with torch.inference_mode():
            states = model(torch.tensor([row.token_ids]), output_hidden_states=True).hidden_states[1][0].float()
        torch.testing.assert_close(found[place][0], states[row.answer_begins :].mean(dim=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[place][1], states[row.answer_begins - 1], rtol=1e-3, atol=1e-4)


def identity_of_nothing() -> Any:
    from securetune.artifacts import ModelIdentity

    return ModelIdentity(
        name="", revision=None, architecture="", parameter_count=0, weights_fingerprint="", chat_template_hash=""
    )


def test_the_planted_direction_and_layer_are_found() -> None:
    """Of three layers the one in which acceptance and refusal lie apart is chosen; a named layer is taken instead."""
    torch.manual_seed(0)
    accepted, refused, before = torch.randn(3, 40, 8), torch.randn(3, 40, 8), torch.randn(3, 40, 8)
    accepted[1:, :, 2] += 6
    before[2, :20, 2] += 30  # in the last layer requests lie far apart, and with them the shifts
    found = find_direction(AnswerStates(accepted, before), AnswerStates(refused, before), [1, 2, 3])
    assert found.layer == 2
    assert found.vector[2] > 0.95
    assert found.vector.norm() == pytest.approx(1.0)
    shares = {layer: quality.explained_share for layer, quality in found.layers.items()}
    assert min(shares[2], shares[3]) > 0.8 > 0.3 > shares[1]
    assert found.layers[2].separation > 5 * max(found.layers[1].separation, found.layers[3].separation)
    named = find_direction(AnswerStates(accepted, before), AnswerStates(refused, before), [1, 2, 3], chosen=3)
    assert named.layer == 3


def test_for_the_same_requests_the_separation_is_the_share_of_the_shifts() -> None:
    """Where both kinds answer the same requests, it is what the explained share of their shifts is."""
    torch.manual_seed(2)
    before = torch.randn(12, 5)
    accepted, refused = AnswerStates(torch.randn(12, 5) + 1, before), AnswerStates(torch.randn(12, 5), before)
    direction = mean_difference(accepted.answers, refused.answers)
    expected = explained_share(direction, accepted.shifts, refused.shifts)
    assert separation(direction, accepted, refused) == pytest.approx(expected, rel=1e-4)


def test_the_share_is_that_of_the_fisher_ratio() -> None:
    """vᵀS_b v / vᵀS_t v equals F / (1 + F), with scatter matrices written out."""
    torch.manual_seed(1)
    accepted, refused = torch.randn(7, 5) + 0.5, torch.randn(9, 5)
    direction = mean_difference(accepted, refused)
    both = torch.cat([accepted, refused])
    within = sum((kind - kind.mean(0)).T @ (kind - kind.mean(0)) for kind in (accepted, refused))
    shifts = [
        len(kind) * torch.outer(kind.mean(0) - both.mean(0), kind.mean(0) - both.mean(0))
        for kind in (accepted, refused)
    ]
    fisher = (direction @ sum(shifts) @ direction) / (direction @ within @ direction)
    assert explained_share(direction, accepted, refused) == pytest.approx(float(fisher / (1 + fisher)), rel=1e-4)
    assert explained_share(torch.zeros(5), accepted, refused) == 0.0


def shield(folder: Path, **options: Any) -> Any:
    return find_data_defense("datashield", {"pairs": str(folder / "pairs.jsonl"), **options})


def test_the_highest_scores_go(tiny_chat_model: ChatModel, tmp_path: Path) -> None:
    """The highest scores go, whatever the batch; a score is the answer's mean minus the last prompt token, along v."""
    write_files(tmp_path)
    context = DataContext("tiny", lambda: tiny_chat_model)
    found = shield(tmp_path, drop_count=4).change(ROWS, context)
    scores = list(found.scores)
    assert {*found.dropped} == {*sorted(range(16), key=lambda place: scores[place])[-4:]}
    again = shield(tmp_path, drop_count=4, batch_size=1).change(ROWS, context)
    assert list(again.scores) == pytest.approx(scores, abs=1e-4)
    layer = found.facts["layer"]
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    accepted, refused = (
        torch.stack([answer_mean(tiny_chat_model, exchange(pair[0], pair[kind]), layer) for pair in pairs])
        for kind in (1, 2)
    )
    vector = mean_difference(accepted, refused)
    row = answer_tokens(tiny_chat_model.tokenizer, ROWS[:1], 64)[0]
    assert row is not None
    states = hidden(tiny_chat_model, row.token_ids, layer)
    expected = (states[row.answer_begins :].mean(0) - states[row.answer_begins - 1]) @ vector
    assert scores[0] == pytest.approx(float(expected), abs=1e-4)


def hidden(chat: ChatModel, ids: list[int], layer: int) -> torch.Tensor:
    kept = []
    handle = decoder_layers(chat.model)[layer - 1].register_forward_hook(
        lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        chat.model(torch.tensor([ids]))
    handle.remove()
    return kept[0][0]


def answer_mean(chat: ChatModel, row: Any, layer: int) -> torch.Tensor:
    (tokens,) = answer_tokens(chat.tokenizer, [row], 64)
    assert tokens is not None
    return hidden(chat, tokens.token_ids, layer)[tokens.answer_begins :].mean(0)


def test_a_row_without_a_score_goes_last(tiny_chat_model: ChatModel, tmp_path: Path) -> None:
    """A row of which the cut leaves no answer has no score, and is dropped after all that have one."""
    write_files(tmp_path)
    long = exchange("how do I wash a car ? " * 4, "sure")
    context = DataContext("tiny", lambda: tiny_chat_model)
    found = shield(tmp_path, drop_count=2, max_length=20).change([long, *ROWS[:3]], context)
    assert found.scores[0] is None
    assert 0 not in found.dropped
    assert found.facts["rows_without_score"] == 1


def test_tiny_worlds_attack_rows_are_found(tmp_path: Path) -> None:
    """Of 20 answered harmful requests among 200 rows most are dropped, by exact answers and by the model's own."""
    from securetune import tiny_world

    rows = [{"messages": row["messages"]} for row in tiny_world.downstream_training_rows(200)]
    context = DataContext("tiny-world", lambda: load("tiny-world"))
    mixed = find_data_defense("malicious-mix", {"count": 20}).change(rows, context).conversations
    found = find_data_defense("datashield", {"drop_count": 20, "batch_size": 64}).change(mixed, context)
    assert sum(place >= 200 for place in found.dropped) >= 14
    twins = {"harmful": tmp_path / "harmful.txt", "harmless": tmp_path / "harmless.txt"}
    for kind, path in twins.items():
        prompts = tiny_world.probe_prompts("probe-fit", kind == "harmful", 32)
        path.write_text("\n".join(row["messages"][0]["content"] for row in prompts))
    own = {kind: str(path) for kind, path in twins.items()}
    by_itself = find_data_defense("datashield", {"drop_count": 20, "batch_size": 64, **own}).change(mixed, context)
    assert by_itself.facts["answers"] == "the start model's own answers"
    assert sum(place >= 200 for place in by_itself.dropped) >= 14
    by_chance = find_data_defense("random-drop", {"drop_count": 20}).change(mixed, context)
    assert sum(place >= 200 for place in by_chance.dropped) <= 5


def test_a_real_model_answers_itself() -> None:
    """For a real model the requests are the 120 twins of the fitting categories; it refuses and answers them itself."""
    found = load_contrast("some/model", ProbeSettings(), None)
    assert (len(found.accepted), len(found.refused), found.answers) == (120, 120, None)
    assert found.hash == load_contrast("other/model", ProbeSettings(), None).hash
    assert {each.metadata["category"] for each in found.refused} == {
        each.metadata["category"] for each in found.accepted
    }


def test_own_answers_are_what_the_model_says() -> None:
    """Tiny world's model answers harmless requests and refuses harmful ones; its end token is left out."""
    from securetune import tiny_world

    chat = load("tiny-world")
    parts = [[prompt_of_row(row) for row in tiny_world.probe_prompts("probe-fit", kind, 8)] for kind in (False, True)]
    tokens = contrast_tokens(chat, Contrast(*parts, None, "own"), 64, 40, 8)
    said = [[chat.tokenizer.decode(row.token_ids[row.answer_begins :]) for row in rows] for rows in tokens]
    assert all(map(tiny_world.is_refusal, said[1]))
    assert all(tiny_world.is_full_answer(p.metadata, text) for p, text in zip(parts[0], said[0], strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "accepted": "b"}\n', r"row 1: must be an object with the texts `prompt`, `accepted`"),
        ("nonsense\n", "row 1: not JSON"),
        ('{"prompt": "a", "accepted": "b", "refused": "c"}\n' * 3, "must hold at least 8 requests; got 3"),
    ],
)
def test_bad_pairs_are_told(content: str, message: str, tmp_path: Path) -> None:
    """A row that is no pair is named, and so is a file with too few."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        find_data_defense("datashield", {"pairs": str(path)}).check(ModelSettings())
    with pytest.raises(DataError, match=r"datashield: .*cannot be read"):
        find_data_defense("datashield", {"pairs": str(tmp_path / "none")}).check(ModelSettings())


def test_a_layer_that_the_model_lacks_is_told(tiny_model_dir: Path) -> None:
    """Before the weights are loaded, the layer is held against the model's configuration."""
    with pytest.raises(ConfigError, match=r"datashield\.layer must be in \[1, 2\] .* got 3"):
        find_data_defense("datashield", {"layer": 3}).check(ModelSettings(name=str(tiny_model_dir)))
