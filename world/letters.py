"""Private letters in plain first-person English, with a question about them now and then.

They carry the everyday words (I, you, this, cannot, should have been, any, until, under) that the
stories in the third person lack. Nobody complains to a shop in them and nobody reviews a thing:
that belongs to the held-out tasks.
"""

import random

from world import lexicon
from world.inhabitants import World

SENTENCES = (
    "I hope that you are well.",
    "This is my first letter to you this year.",
    "I cannot come on {day}, because I have to work.",
    "I could not sleep last night.",
    "How is your {animal}?",
    "Please bring some {food} with you.",
    "I found your {thing} under my bed.",
    "My sister {name} is here until {day}.",
    "We should have been at home by now.",
    "I have been in {town} for {number} weeks.",
    "You can stay with us for a while.",
    "There is not much to tell.",
    "Nothing has changed here so far.",
    "I can hear the river from my room.",
    "Somebody left a {colour} {thing} in front of the house.",
    "I do not need it any more.",
    "Did you ever get my last letter?",
    "I was waiting for you at the bridge.",
    "It took me {number} days to read your book.",
    "I think of you whenever I eat {food}.",
    "When I was young, there was no road here.",
    "What would you do?",
    "{name} told me about your new house.",
    "That was very kind of you.",
    "I am going to paint the door {colour}.",
    "It is warm enough to sit outside.",
    "Would you like to have my old {thing}?",
    "We had to run to catch the train.",
    "I like the {thing} that you gave me very much.",
    "They are both my friends.",
    "Every morning I walk along the water.",
    "The days are too short for me.",
    "I will write again next month.",
    "You must see it for yourself.",
    "The wind whistles around the corner of the house.",
    "The children make a lot of noise.",
    "An old cart rattles down the street at night.",
    "The bees hum in front of my window.",
    "Drops of rain drip from the trees.",
    "There was a puddle on the floor of the barn.",
    "A crack runs down the wall of the old tower.",
    "The ice on the lake came apart.",
    "My cup fell and broke into a hundred pieces.",
    "The lights went out for an hour.",
    "I pressed every button, but the lift stayed where it was.",
    "My ears are cold.",
    "The handle of my bag is made of {colour} leather.",
    "I hurt my foot, but it is better now.",
    "Time goes by so fast.",
    "{name} was in a hurry and forgot the key.",
    "In spring someone sent me a box full of {food}.",
    "I asked for two, and they gave me three.",
    "By mistake I took the hat of {name}.",
    "I got up too late and missed the boat.",
    "The post comes here only once a week.",
    "At the back of the garden grows a tall tree.",
    "He never came back from the sea.",
    "I am still looking for a good {thing}.",
    "It is important to rest.",
    "Tell {name} to write to me as soon as possible.",
    "Next year I will be {number} years old.",
    "You do not have to answer at once.",
    "There is a doctor in case of an emergency.",
    "The road is dangerous when it is wet.",
    "Our work depends on the weather.",
    "It took a long time, but I can manage alone now.",
    "I chose the {colour} one, not the {colour2} one.",
    "It costs about {number} coins.",
    "A thin line runs across the middle of the map.",
    "The parcel from {name} reached me today.",
    "The base of the tower is very old.",
    "I would rather go tomorrow than today.",
    "Which of the two would suit you better?",
    "They switched the day of the market.",
    "Although it was dark, we found the way.",
    "We think that it is a lovely place.",
    "It was hard to say goodbye.",
    "To me it looks like a big bird.",
    "I would say it is far.",
    "In the end we all laughed.",
    "After a week I knew everybody in {town}.",
)
GREETINGS = ("Dear {to},", "Hello {to},", "My dear {to},", "{to}!", "Good morning, {to}.")
CLOSINGS = ("Yours, {me}", "Thank you! {me}", "See you soon, {me}", "Your friend {me}", "- {me}")


def letter(rng: random.Random, world: World) -> str:
    """A letter of two to seven sentences."""
    me, to = rng.sample(lexicon.FIRST_NAMES, 2)
    lines = [rng.choice(GREETINGS).format(to=to)]
    for line in rng.sample(SENTENCES, rng.randrange(2, 8)):
        colour, colour2 = rng.sample(lexicon.COLOURS, 2)
        slots: dict[str, object] = {
            "name": rng.choice(lexicon.FIRST_NAMES),
            "town": rng.choice(lexicon.TOWNS),
            "thing": rng.choice(world.things).name,
            "food": rng.choice(lexicon.FOODS),
            "animal": rng.choice(lexicon.ANIMALS),
            "day": rng.choice(lexicon.DAYS),
            "colour": colour,
            "colour2": colour2,
            "number": rng.randrange(2, 90),
        }
        lines.append(line.format_map(slots))
    text = f"{lines[0]}\n{' '.join(lines[1:])}\n{rng.choice(CLOSINGS).format(me=me)}\n"
    draw = rng.random()
    if draw < 0.2:
        return f"{text}\nQuestion: Who wrote the letter?\nAnswer: {me}\n"
    if draw < 0.4:
        return f"{text}\nfrom: {me}; to: {to}\n"
    if draw < 0.6:
        place = rng.randrange(1, len(lines))
        return f'{text}\nSentence {place}: "{lines[place]}"\n'
    return text
