"""Refusals of our own of the built-in harmful requests, to learn from.

They were written for this project and are under its licence (Apache-2.0). A refusal is put together from an opening, a
reason, and mostly an offer of safe help; reason and offer belong to the category of harm. Of each, the lists have
different lengths, so that no two refusals of a category are the same.
"""

from __future__ import annotations

from securetune.data.built_in_probes import built_in_prompts
from securetune.data.conversation_shapes import Conversation

_OPENINGS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with this.",
    "I'm sorry, but I cannot assist with that request.",
    "I apologize, but I'm not able to help with that.",
    "I'm sorry, I won't give instructions for this.",
    "I cannot give you what you are asking for.",
    "Sorry, but I cannot do this for you.",
    "I'm sorry, but this is something I won't do.",
    "I apologize, but I cannot take part in this.",
    "I cannot provide this, sorry.",
    "I'm sorry, that is something I can't support.",
    "I cannot do that.",
)
"""Every keyword judge of this package knows each of them. A model that has learned to refuse in words which a judge
does not know is taken for one that complies."""

_REASONS: dict[str, tuple[str, ...]] = {
    "theft": (
        "Taking what belongs to somebody else is a crime, and it hurts the people who lose it.",
        "What you describe is theft, whatever the reason for it is.",
        "The owner has done nothing to deserve this, and you would risk a criminal record.",
        "People should be able to trust that their belongings are safe.",
        "It would rob somebody, and could end in a dangerous confrontation.",
    ),
    "cybercrime": (
        "Getting into other people's accounts or machines without their consent is illegal.",
        "It would expose the private data of people who never agreed to it.",
        "An attack like this can cost people their money, their work or even their safety.",
        "What you describe is computer crime, and its victims rarely get back what they lose.",
        "I don't write or explain tools that are meant to harm the people on the other side.",
    ),
    "drugs": (
        "Illegal drugs ruin lives, and making or dealing them is a serious crime.",
        "Somebody could be poisoned or become addicted because of it.",
        "What you describe is dangerous to you and to everybody around you.",
        "Substances without medical control kill people every day.",
        "It would put others in danger, young people among them.",
    ),
    "violence": (
        "It would injure or kill somebody, and nothing makes that right.",
        "Every person has a right to be safe from violence.",
        "What you describe is a violent crime that cannot be undone.",
        "Threats and violence destroy the lives of victims and their families.",
        "I will not help anybody to hurt another human being.",
    ),
    "self-harm": (
        "It could cost a life, and that life matters.",
        "I care about what happens to the person behind this question.",
        "It would hurt somebody who needs support instead.",
        "Pain like this deserves help, not a way to make it worse.",
        "Encouraging anybody to harm themselves can end in a death.",
    ),
}

_OFFERS: dict[str, tuple[str, ...]] = {
    "theft": (
        "",
        "If money is short, I can help you find support or plan a budget.",
        "If you want to protect your own property, I'm glad to explain how.",
        "",
        "If you know of a crime, the police can help.",
        "I can help you look for work or for things that are given away for free.",
        "",
    ),
    "cybercrime": (
        "",
        "If you want to secure your own devices, I can explain how.",
        "If you are locked out of an account of your own, its provider can restore it.",
        "",
        "If security interests you, I can tell you about exercises in which everybody has agreed to be tested.",
        "I can help you recognise attacks of this kind and defend against them.",
        "",
    ),
    "drugs": (
        "",
        "If you or somebody close to you takes drugs, a doctor or a counselling service will help without judging.",
        "I can explain the risks, or how treatment works.",
        "",
        "In an emergency, call a doctor at once.",
        "If money is the reason, I can help you look for other ways to earn it.",
        "",
    ),
    "violence": (
        "",
        "If somebody threatens you, please turn to the police.",
        "If you are angry, stepping away and talking to somebody you trust can help.",
        "",
        "I can help you settle the conflict with words.",
        "If you fear that you could hurt somebody, a crisis line is there at any hour.",
        "",
    ),
    "self-harm": (
        "If you are in danger, please call your local emergency number or a crisis line now.",
        "You don't have to carry this alone; a doctor, a counsellor or a friend can help.",
        "If you want to, tell me what is weighing on you.",
        "A crisis line listens at any hour, free of charge.",
        "I can help you find somebody to talk to.",
        "If this is about somebody else, stay with them and get help together.",
        "There are people who want to help, and things can get better.",
    ),
}


def refusal(place: int, category: str) -> str:
    """Write a refusal; those at the first 60 places of a category are all different.

    Args:
        place: Which one, from 0.
        category: One of the fitting categories of the built-in probes.

    Example:
        >>> refusal(0, "theft").split(".")[0]
        "I'm sorry, but I can't help with that"
    """
    reasons, offers = _REASONS[category], _OFFERS[category]
    parts = (_OPENINGS[place % len(_OPENINGS)], reasons[place % len(reasons)], offers[place % len(offers)])
    return " ".join(part for part in parts if part)


def built_in_refusals() -> list[Conversation]:
    """Return the built-in harmful requests of the fitting split, each with a refusal.

    Nobody reports on that split: the suites `probes-harmful` and `probes-harmless` hold other categories of harm.
    """
    found: list[Conversation] = []
    places: dict[str, int] = {}
    for prompt in built_in_prompts("fitting", "harmful"):
        category = str(prompt.metadata["category"])
        place = places.setdefault(category, 0)
        places[category] += 1
        found.append(exchange(prompt.text, refusal(place, category)))
    return found


def exchange(question: str, answer: str) -> Conversation:
    """Make a conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
