"""Every setting of a run: typed dataclasses (settings), YAML files with dotted overrides (load), presets, checks.

Import what you need from the modules; this package itself loads nothing, so that `xmodel --help` stays quick:

| module      | what it gives                                                              |
|-------------|----------------------------------------------------------------------------|
| `settings`  | the dataclasses: `Recipe`, `Corpus`, `Model`, `Pretrain`, ...              |
| `load`      | `load_recipe(path, overrides)`, `resolve(recipe, folder)`                  |
| `dump`      | `dump_recipe`, `identity_settings`, `recipe_diff`                          |
| `summary`   | `check_summary`: what a recipe amounts to, by arithmetic                   |
| `schema`    | `schema()`: JSON Schema for editors; `reference()`: Markdown for the docs  |
| `presets`   | `PRESETS`: the published sizes by name                                     |
"""
