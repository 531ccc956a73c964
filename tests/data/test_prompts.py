import json
from pathlib import Path

import pytest
from tiny_models import tiny_prompts

from securetune import tiny_world
from securetune.config import ProbeSettings
from securetune.data.overlap import find_overlap
from securetune.data.prompts import Prompt, load_probes, make_probe_set, read_prompts
from securetune.errors import DataError


def _write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def _numbered(path: Path, word: str, count: int) -> str:
    return str(_write(path, "".join(f"{word} number {index}\n" for index in range(count))))


def test_a_text_file_gives_one_prompt_a_line(tmp_path: Path):
    """Blank lines, a byte-order mark and Windows line ends are no part of the prompts."""
    rows = read_prompts(_write(tmp_path / "a.txt", "\ufeffhow to bake?\r\n\r\n  what is a tent?  \n"))
    assert [row.text for row in rows] == ["how to bake?", "what is a tent?"]
    assert [row.id for row in rows] == ["a:1", "a:3"]


def test_json_lines_take_prompt_or_messages_and_keep_the_rest_as_metadata(tmp_path: Path):
    """Both forms may stand in one file; `id` is used if it is there."""
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [
        {"prompt": "how to bake?", "category": "food"},
        {"id": 7, "messages": [*conversation, {"role": "user", "content": "and now?"}]},
    ]
    first, second = read_prompts(_write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert first == Prompt("a:1", ({"role": "user", "content": "how to bake?"},), {"category": "food"})
    assert (second.id, second.text, len(second.messages)) == ("7", "and now?", 3)


def test_json_lines_are_recognised_whatever_the_file_is_called(tmp_path: Path):
    """A file that opens with an object is not read as text."""
    assert read_prompts(_write(tmp_path / "prompts.data", '{"prompt": "hi"}\n'))[0].text == "hi"


def test_a_line_separator_inside_a_text_does_not_split_its_row(tmp_path: Path):
    """U+2028 may stand in a JSON string; only line feeds end a row."""
    assert read_prompts(_write(tmp_path / "a.jsonl", '{"prompt": "one\u2028two"}\n'))[0].text == "one\u2028two"


def test_all_bad_rows_are_named_with_their_numbers(tmp_path: Path):
    """The user sees every mistake at once, counted as an editor counts lines."""
    rows = [
        '{"prompt": "fine"}',
        "not json",
        '{"question": "?"}',
        '{"prompt": ""}',
        "",
        "[1]",
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": [{"role": "assistant", "content": "hello"}]}',
    ]
    with pytest.raises(DataError) as caught:
        read_prompts(_write(tmp_path / "a.jsonl", "\n".join(rows)))
    found = [problem.split("a.jsonl: ", 1)[1] for problem in caught.value.problems]
    assert found[0].startswith("row 2: not JSON")
    assert found[1] == 'row 3: must have "prompt" or "messages"; got the fields question'
    assert found[2] == "row 4: \"prompt\" must be a text that is not empty; got ''"
    assert found[3] == 'row 6: must be an object with "prompt" or "messages"; got list'
    assert found[4] == 'row 7: "messages" must be a list with at least one message'
    assert found[5] == 'row 8: message 1: "content" must be a text that is not empty; got 3'
    assert found[6] == 'row 9: the last message must be from "user"; got "assistant"'


def test_a_file_with_only_bad_rows_does_not_flood_the_screen(tmp_path: Path):
    """Twenty rows are shown and the others counted."""
    with pytest.raises(DataError, match="80 more bad rows") as caught:
        read_prompts(_write(tmp_path / "a.jsonl", "x\n" * 100))
    assert len(caught.value.problems) == 21


@pytest.mark.parametrize(("content", "sentence"), [("", "an empty file"), ("\n \n", "an empty file")])
def test_an_empty_file_is_refused(tmp_path: Path, content: str, sentence: str):
    """No prompts are not a set of prompts."""
    with pytest.raises(DataError, match=sentence):
        read_prompts(_write(tmp_path / "a.txt", content))


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path: Path):
    """Each has its sentence."""
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="must be UTF-8 text; byte 3 is not"):
        read_prompts(tmp_path / "b.txt")


def test_two_rows_with_one_id_are_refused(tmp_path: Path):
    """Results are kept by id, so it must be unique."""
    with pytest.raises(DataError, match='the id "x" is used twice'):
        read_prompts(_write(tmp_path / "a.jsonl", '{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}'))


def test_a_probe_set_whose_parts_overlap_is_refused():
    """A classifier must not be scored on prompts that it was fitted on."""
    harmful, harmless = tiny_prompts("harmful", 0, 8), tiny_prompts("harmless", 0, 8)
    with pytest.raises(
        DataError, match=r"the fitting harmful prompts and the scoring harmful prompts must not overlap; 8 of 8 do"
    ):
        make_probe_set(harmful, harmless, harmful, tiny_prompts("harmless", 1, 8))


def test_too_few_prompts_are_refused():
    """An accuracy over three prompts says nothing."""
    few = tiny_prompts("harmful", 0, 3)
    with pytest.raises(DataError, match="the fitting harmful prompts must be at least 4; got 3"):
        make_probe_set(
            few, tiny_prompts("harmless", 0, 8), tiny_prompts("harmful", 1, 8), tiny_prompts("harmless", 1, 8)
        )


def test_files_are_split_by_seed_and_share_without_overlap(tmp_path: Path):
    """The parts have the asked sizes, are disjoint, and depend on the seed alone."""
    files = {
        "harmful": _numbered(tmp_path / "bad.txt", "burn", 40),
        "harmless": _numbered(tmp_path / "ok.txt", "wash", 40),
    }
    probes = load_probes(ProbeSettings(**files, fit_share=0.25), "some/model")
    assert [len(part) for part in probes[:4]] == [10, 10, 30, 30]
    assert not find_overlap(probes.fit_harmful, probes.score_harmful)
    assert load_probes(ProbeSettings(**files, fit_share=0.25), "other").hash == probes.hash
    assert load_probes(ProbeSettings(**files, fit_share=0.25, seed=1), "other").hash != probes.hash
    assert [len(part) for part in load_probes(ProbeSettings(**files, max_prompts=6), "m")[:4]] == [6, 6, 6, 6]


def test_repeated_prompts_of_a_file_are_left_out_with_a_warning(tmp_path: Path):
    """They could otherwise stand in both parts."""
    bad = _write(tmp_path / "bad.txt", "".join(f"Burn {index}!\nburn {index}\n" for index in range(10)))
    ok = _numbered(tmp_path / "ok.txt", "wash", 10)
    with pytest.warns(UserWarning, match=r"bad\.txt: 10 prompts repeat an earlier one"):
        probes = load_probes(ProbeSettings(harmful=str(bad), harmless=ok), "m")
    assert len(probes.fit_harmful) == len(probes.score_harmful) == 5


def test_the_same_prompt_as_harmful_and_harmless_is_refused(tmp_path: Path):
    """A prompt cannot belong to both classes; one sentence names both files, the count and an example."""
    bad = _write(tmp_path / "bad.txt", "".join(f"Burn {index}!\n" for index in range(10)))
    ok = _write(tmp_path / "ok.txt", "".join(f"wash {index}\n" for index in range(10)) + "burn 3\nburn 7\n")
    with pytest.raises(DataError) as caught:
        load_probes(ProbeSettings(harmful=str(bad), harmless=str(ok)), "m")
    assert caught.value.problems == [
        f"the harmful prompts ({bad}) and the harmless prompts ({ok}) must not overlap; 2 of 12 do, "
        'such as "burn 3" (bad:4 and ok:11)'
    ]


def test_overlap_is_reported_beside_other_mistakes(tmp_path: Path):
    """Two files that share prompts, one of them too small, are two sentences."""
    small, ok = _numbered(tmp_path / "a.txt", "wash", 5), _numbered(tmp_path / "b.txt", "wash", 10)
    with pytest.raises(DataError) as caught:
        load_probes(ProbeSettings(harmful=small, harmless=ok), "m")
    assert len(caught.value.problems) == 2
    assert "5 different prompts give 2 for fitting" in caught.value.problems[0]
    assert "must not overlap; 5 of 10 do" in caught.value.problems[1]


def test_mistakes_of_both_files_are_reported_together(tmp_path: Path):
    """Two missing files are two sentences."""
    with pytest.raises(DataError) as caught:
        load_probes(ProbeSettings(harmful=str(tmp_path / "a"), harmless=str(tmp_path / "b")), "m")
    assert len(caught.value.problems) == 2


def test_one_file_without_the_other_is_refused(tmp_path: Path):
    """A classifier needs both classes; the missing flag is named."""
    with pytest.raises(DataError, match="--harmless is missing"):
        load_probes(ProbeSettings(harmful=_numbered(tmp_path / "a.txt", "burn", 10)), "tiny-world")


def test_a_small_file_names_the_sizes_of_its_parts(tmp_path: Path):
    """The user learns how many prompts there would have to be."""
    small, ok = _numbered(tmp_path / "a.txt", "burn", 5), _numbered(tmp_path / "b.txt", "wash", 10)
    with pytest.raises(DataError, match=r"5 different prompts give 2 for fitting and 3 for scoring"):
        load_probes(ProbeSettings(harmful=small, harmless=ok), "m")


def test_tiny_worlds_probes_are_all_that_there_are_where_more_are_asked_for() -> None:
    """`max_prompts` is a limit: above the number of prompts it is no mistake."""
    sizes = [len(part) for part in load_probes(ProbeSettings(max_prompts=5_000), "tiny-world")[:4]]
    assert min(sizes) > 400
    assert max(sizes) < 500


def test_tiny_world_has_probes_in_its_own_language(tmp_path: Path):
    """Its models, also those tuned from them, get prompts that they can read."""
    probes = load_probes(ProbeSettings(max_prompts=20), "tiny-world")
    assert [len(part) for part in probes[:4]] == [20] * 4
    assert all(prompt.metadata["harmful"] for prompt in probes.score_harmful)
    assert not any(prompt.metadata["harmful"] for prompt in probes.score_harmless)
    _write(tmp_path / "chat_template.jinja", tiny_world.tokenizer.CHAT_TEMPLATE)
    assert load_probes(ProbeSettings(max_prompts=20), str(tmp_path)).hash == probes.hash


def test_any_other_model_has_the_built_in_probes():
    """They are used when no files are given, cut to the longest length asked for with both classes still twins."""
    probes = load_probes(ProbeSettings(), "some/model")
    assert [len(part) for part in probes[:4]] == [120, 120, 96, 96]
    few = load_probes(ProbeSettings(max_prompts=10), "some/model")
    assert [len(part) for part in few[:4]] == [10] * 4
    assert few.fit_harmful == probes.fit_harmful[:10]
    names = [[prompt.id.rpartition("-")[0] for prompt in part] for part in few[:4]]
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert len({prompt.metadata["category"] for prompt in few.fit_harmful}) == 5


def _unseen(folder: Path, **changes: str | None) -> ProbeSettings:
    """Name four good files, changed as a case wants."""
    sources = {
        "harmful": _numbered(folder / "bad.txt", "burn", 10),
        "harmless": _numbered(folder / "ok.txt", "wash", 10),
        "unseen_harmful": _numbered(folder / "other_bad.txt", "steal", 6),
        "unseen_harmless": _numbered(folder / "other_ok.txt", "sell", 8),
    }
    return ProbeSettings(**{**sources, **changes})


def test_prompts_of_another_source_are_kept_apart(tmp_path: Path):
    """They are read beside any probes and leave their hash: search needs no more than the classifier was fitted on."""
    probes = load_probes(_unseen(tmp_path), "some/model")
    assert probes.unseen is not None
    assert [len(prompts) for prompts in probes.unseen] == [6, 8]
    plain = load_probes(_unseen(tmp_path, unseen_harmful=None, unseen_harmless=None), "some/model")
    assert (plain.unseen, plain.hash) == (None, probes.hash)
    built_in = load_probes(_unseen(tmp_path, harmful=None, harmless=None), "some/model")
    assert built_in.unseen is not None
    assert len(built_in.fit_harmful) == 120


def test_prompts_of_another_source_must_be_new(tmp_path: Path):
    """One without the other, too few, and one that the classifier has seen are each a sentence."""
    for changes, sentence in (
        ({"unseen_harmless": None}, "probes.unseen_harmless is missing"),
        ({"unseen_harmful": _numbered(tmp_path / "few.txt", "rob", 3)}, "few.txt) must be at least 4; got 3"),
        (
            {"unseen_harmless": str(tmp_path / "ok.txt")},
            f"the fitting prompts and the unseen harmless prompts ({tmp_path / 'ok.txt'}) must not overlap; 5 of 10 do",
        ),
        (
            {"unseen_harmless": str(tmp_path / "other_bad.txt")},
            f"({tmp_path / 'other_bad.txt'}) and the unseen harmless prompts",
        ),
    ):
        with pytest.raises(DataError) as caught:
            load_probes(_unseen(tmp_path, **changes), "some/model")
        assert sentence in caught.value.problems[0]


def test_mistakes_in_all_four_sources_are_reported_together(tmp_path: Path):
    """Probes and prompts of another source are checked in one go."""
    names = ("harmful", "harmless", "unseen_harmful", "unseen_harmless")
    with pytest.raises(DataError) as caught:
        load_probes(_unseen(tmp_path, **{name: str(tmp_path / f"no_{name}") for name in names}), "some/model")
    assert [problem.partition(":")[0].rpartition("no_")[2] for problem in caught.value.problems] == list(names)


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Prompts are named for their file, so one that UTF-8 cannot hold is a line, and no crash later."""
    path = tmp_path / b"bad\xff.txt".decode("utf-8", "surrogateescape")
    path.write_text("how do i bake bread ?\n")
    with pytest.raises(DataError, match="the name of a file must be UTF-8 text"):
        read_prompts(path)
