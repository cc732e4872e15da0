"""Language models behind one Protocol (`redteam.llm.language.LanguageModel`): local, served, remote, embedded.

Importing this package loads nothing heavy; each backend imports what it needs when a model is opened.
"""
