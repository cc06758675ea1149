"""Makes tests/fixtures/clean-texts.json: texts, and what open_clip's cleaning makes of them before its tokenizer.

    python scripts/make_clean_fixture.py [--out tests/fixtures/clean-texts.json]

Needs open_clip_torch and ftfy. Texts that ftfy takes for wrongly decoded are left out: that is the one thing vpt does not do.
"""
import argparse, json, os, random, unicodedata

import ftfy
from open_clip.tokenizer import _clean_lower

BLOCKS = [(0x80, 0x9F), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x900, 0x97F), (0x1C4, 0x1F3), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x209C),
          (0x2100, 0x214F), (0x3000, 0x30FF), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0xFB00, 0xFB06), (0xFF01, 0xFFEF), (0x1D400, 0x1D4FF), (0x300, 0x36F), (0xF900, 0xFAFF)]
HTML = ["&amp;", "&lt;b&gt;", "&quot;x&quot;", "&#39;", "&nbsp;", "&eacute;", "&EACUTE;", "&Eacute;", "&copy;", "&amp;amp;", "&amp;lt;", "&#x1F408;", "&euro;5", "<br/>", "<p>text</p>", "&lt;", "&hellip;", "&notit;",
        "&unknown;", "&amp", "&copy 2020", "&rsquo;", "&ldquo;a&rdquo;", "&#0;", "&#128;", "&#x85;", "&#xD800;", "&#99999999999;", "&#x;", "&#;", "&", "&&", "& ", "&;", "&a", "&notin", "&notin;", "&NOTIN;", "&SZLIG;", "&ltx;", "&#65", "&#x41 b",
        "&#1;", "&#xFFFE;", "&Jscr;", "&copy\u00e9", "&ampamp;", "&AMP", "&GT;", "&reg;&REG;", "&NTILDE;", "&nTILDE;", "&frac12;", "&fjlig;", "&" + "x" * 40, "&amp" + "x" * 40]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u200b", "\u2028", "\u2029", "\x0b", "\x0c", "\u0085", "\ufeff", "a", "B.", "\x1b[31m", "\x1b[", "\x1b[1;3x", "\x07", "\x1f", "\ufffc"]
OWN = ["", " ", "\u0149 \u0149", "\u0130stanbul", "\u1e9e \u00df", "\u03a3\u0391\u03a3", "it\u2019s \u201cquoted\u201d \u02bcn", "\ufb01ne \ufb05", "e\u0301 \u212b \u2126", "&lt;\n&rsquo; <b>\n&rsquo; &EACUTE;", "line &rsquo;\n<i> &rsquo;", "\uff26\uff35\uff2c\uff2c \uff76\uff9e \uffc3 \uffe6"]


def main(out):
    draw = random.Random(7)
    assigned = lambda c: unicodedata.category(c) not in ("Cn", "Cs", "Co")
    word = lambda block: "".join(filter(assigned, (chr(draw.randint(*block)) for _ in range(draw.randint(1, 6)))))
    texts = OWN + HTML
    texts += [" ".join(word(draw.choice(BLOCKS)) for _ in range(draw.randint(1, 4))) for _ in range(160)]
    texts += [draw.choice(["", " ", "x"]).join(draw.choice(HTML) for _ in range(draw.randint(2, 4))) for _ in range(90)]
    texts += ["".join(draw.choice(SPACES) for _ in range(draw.randint(1, 9))) for _ in range(60)]
    # As ftfy would be without its guess of encodings, all else as it is.
    same = [text for text in texts if ftfy.fix_text(text) == ftfy.fix_text(text, fix_encoding=False)]
    with open(out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps([text, _clean_lower(text)]) for text in dict.fromkeys(same)) + "\n]\n")
    print(len(texts), len(same))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures", "clean-texts.json"))
    main(parser.parse_args().out)
