"""One settings language: YAML recipes, flags and Python values, all validated in one way.

settings   nested plain data, with the place of every setting (file and line, or flag)
yaml_file  read and write YAML, with the line of every setting
flags      set single values by flags
values     one value: its type in words, and its parsing from the text of a flag
validate   plain data to pydantic models and method dataclasses; all mistakes at once
versions   the versions of packages that can change a result
"""
