"""AMBER's noun extractor and word similarity, with what to do where NLTK's or spaCy's data is not installed."""

import re
from collections.abc import Callable, Container
from functools import lru_cache

from emma.errors import EmmaError

SIMILARITY = 0.8
_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*")


def nltk_nouns(text: str) -> list[str]:
    """Lemmatised nouns of a text, as the official script finds them (case kept).

    Raises:
        EmmaError: NLTK or its data is not installed.
    """
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer

        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        lemmatizer = WordNetLemmatizer()
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]
    except (ImportError, LookupError) as error:
        raise EmmaError(
            "AMBER's noun extractor needs NLTK with its data: pip install 'emma-vlm[eval]', then "
            "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet; or score with nouns=words"
        ) from error


def has_nltk() -> bool:
    """Whether the official extractor can run here."""
    try:
        nltk_nouns("a dog")
    except EmmaError:
        return False
    return True


def vocabulary_words(text: str, vocabulary: Container[str]) -> list[str]:
    """The words of a text that are in the vocabulary, plurals as their singular: no tagger, so that a verb that is
    spelt like an object counts as one."""
    found = []
    for word in _WORD.findall(text):
        forms = [word]
        if word.endswith("ies"):
            forms.append(f"{word[:-3]}y")
        if word.endswith("es"):
            forms.append(word[:-2])
        if word.endswith("s"):
            forms.append(word[:-1])
        if match := next((form for form in forms if form in vocabulary), None):
            found.append(match)
    return found


def spacy_similarity() -> Callable[[str, str], bool]:
    """Whether two words are synonyms: cosine of `en_core_web_lg` above 0.8 (other spaCy models give other scores).

    Raises:
        EmmaError: spaCy or that model is not installed.
    """
    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError) as error:
        raise EmmaError(
            "AMBER's similarity needs spaCy's en_core_web_lg (python -m spacy download en_core_web_lg); "
            "or score with similarity=none"
        ) from error
    vector = lru_cache(maxsize=None)(model)
    return lambda one, other: vector(one).similarity(vector(other)) > SIMILARITY


def has_spacy() -> bool:
    """Whether the official similarity can run here."""
    try:
        spacy_similarity()
    except EmmaError:
        return False
    return True
