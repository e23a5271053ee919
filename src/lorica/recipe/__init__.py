"""One settings language: YAML recipes, flags and Python values, judged alike.

settings.py   nested plain data with the place of each part
text.py       YAML in (with lines) and out
values.py     one value: its type in words, from a flag's text
judge.py      pydantic models and method dataclasses; all mistakes at once
flags.py      flags over a recipe
versions.py   of the packages that can change a result
"""
