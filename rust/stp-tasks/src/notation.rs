//! One spelling of the characters that answers are written with: Unicode signs as ASCII or LaTeX.

/// Superscripts of the digits and of both signs, and what they are raised forms of.
const RAISED: [(char, char); 13] = [
    ('\u{2070}', '0'),
    ('\u{b9}', '1'),
    ('\u{b2}', '2'),
    ('\u{b3}', '3'),
    ('\u{2074}', '4'),
    ('\u{2075}', '5'),
    ('\u{2076}', '6'),
    ('\u{2077}', '7'),
    ('\u{2078}', '8'),
    ('\u{2079}', '9'),
    ('\u{207a}', '+'),
    ('\u{207b}', '-'),
    ('\u{207f}', 'n'),
];

/// Single characters that stand for a LaTeX text.
const SPELT: [(char, &str); 62] = [
    ('\u{bc}', "\\frac{1}{4}"),
    ('\u{bd}', "\\frac{1}{2}"),
    ('\u{be}', "\\frac{3}{4}"),
    ('\u{2153}', "\\frac{1}{3}"),
    ('\u{2154}', "\\frac{2}{3}"),
    ('\u{2155}', "\\frac{1}{5}"),
    ('\u{2156}', "\\frac{2}{5}"),
    ('\u{2157}', "\\frac{3}{5}"),
    ('\u{2158}', "\\frac{4}{5}"),
    ('\u{2159}', "\\frac{1}{6}"),
    ('\u{215a}', "\\frac{5}{6}"),
    ('\u{215b}', "\\frac{1}{8}"),
    ('\u{215c}', "\\frac{3}{8}"),
    ('\u{215d}', "\\frac{5}{8}"),
    ('\u{215e}', "\\frac{7}{8}"),
    ('\u{221b}', "\\sqrt[3]"),
    ('\u{3b1}', "\\alpha "),
    ('\u{3b2}', "\\beta "),
    ('\u{3b3}', "\\gamma "),
    ('\u{3b4}', "\\delta "),
    ('\u{3b8}', "\\theta "),
    ('\u{3bb}', "\\lambda "),
    ('\u{3bc}', "\\mu "),
    ('\u{3c0}', "\\pi "),
    ('\u{3c1}', "\\rho "),
    ('\u{3c3}', "\\sigma "),
    ('\u{3c6}', "\\phi "),
    ('\u{3c9}', "\\omega "),
    ('\u{221e}', "\\infty "),
    ('\u{d7}', "\\times "),
    ('\u{b7}', "\\cdot "),
    ('\u{22c5}', "\\cdot "),
    ('\u{2219}', "\\cdot "),
    ('\u{2217}', "*"),
    ('\u{f7}', "/"),
    ('\u{2215}', "/"),
    ('\u{2044}', "/"),
    ('\u{2264}', "\\le "),
    ('\u{2a7d}', "\\le "),
    ('\u{2265}', "\\ge "),
    ('\u{2a7e}', "\\ge "),
    ('\u{2260}', "\\ne "),
    ('\u{b1}', "\\pm "),
    ('\u{2213}', "\\mp "),
    ('\u{222a}', "\\cup "),
    ('\u{2229}', "\\cap "),
    ('\u{2208}', "\\in "),
    ('\u{2205}', "\\emptyset "),
    ('\u{211d}', "\\mathbb{R}"),
    ('\u{2124}', "\\mathbb{Z}"),
    ('\u{2115}', "\\mathbb{N}"),
    ('\u{211a}', "\\mathbb{Q}"),
    ('\u{2248}', "\\approx "),
    ('\u{b0}', "^\\circ "),
    ('\u{ba}', "^\\circ "),
    ('\u{2032}', "'"),
    ('\u{2018}', "'"),
    ('\u{2019}', "'"),
    ('\u{2026}', "\\ldots "),
    ('\u{27e8}', "("),
    ('\u{27e9}', ")"),
    ('\u{2236}', ":"),
];

/// What stays of a dash between two numbers: a range such as 10 to 12, which is no difference.
pub const RANGE: char = '\u{2013}';

/// The text in ASCII and LaTeX where it has a spelling there: full-width forms, minus signs, white space, powers,
/// indices, roots, fractions, relations, and digits of a few scripts. Other characters stay.
#[must_use]
pub fn ascii(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if let Some(first) = raised(c).or_else(|| lowered(c)) {
            let form = if raised(c).is_some() { raised } else { lowered };
            made.push_str(if raised(c).is_some() { "^{" } else { "_{" });
            made.push(first);
            while let Some(next) = chars.peek().and_then(|&next| form(next)) {
                made.push(next);
                chars.next();
            }
            made.push('}');
            continue;
        }
        match c {
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}' | '\u{fe0e}' | '\u{fe0f}' => {}
            '\u{2010}'..='\u{2012}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{2796}' => made.push('-'),
            '\u{2013}'..='\u{2015}' => {
                let after_number = made.trim_end().ends_with(|c: char| c.is_ascii_digit());
                made.push(if after_number { RANGE } else { '-' });
            }
            '\u{ff01}'..='\u{ff5e}' => made.extend(char::from_u32(c as u32 - 0xfee0)),
            '\u{221a}' => root(&mut made, &mut chars),
            c if c.is_whitespace() => made.push(if c == '\n' { '\n' } else { ' ' }),
            c => match (digit(c), SPELT.iter().find(|(from, _)| *from == c)) {
                (Some(digit), _) => made.push(digit),
                (None, Some((_, to))) => made.push_str(to),
                (None, None) => made.push(c),
            },
        }
    }
    made
}

/// A root sign reaches as far as the number, letter or bracket after it.
fn root(made: &mut String, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    made.push_str("\\sqrt");
    let part = |c: char| c.is_ascii_digit() || c == '.';
    if chars.peek().is_some_and(|&c| part(c)) {
        made.push('{');
        while let Some(c) = chars.next_if(|&c| part(c)) {
            made.push(c);
        }
        made.push('}');
    }
}

fn raised(c: char) -> Option<char> {
    RAISED.iter().find(|(from, _)| *from == c).map(|(_, to)| *to)
}

fn lowered(c: char) -> Option<char> {
    ('\u{2080}'..='\u{2089}').contains(&c).then(|| char::from(b'0' + (c as u32 - 0x2080) as u8))
}

/// The ASCII digit of an Arabic, Persian or Devanagari one.
fn digit(c: char) -> Option<char> {
    let zero = [0x660_u32, 0x6f0, 0x966].into_iter().find(|zero| (*zero..zero + 10).contains(&(c as u32)))?;
    char::from_digit(c as u32 - zero, 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (text, want) in [
            ("\u{2212}5, \u{fe63}5, \u{ff0d}5, \u{2010}5, \u{2014}5", "-5, -5, -5, -5, -5"),
            ("10\u{2013}12", "10\u{2013}12"),
            ("10 \u{2014} 12", "10 \u{2013} 12"),
            ("x\u{b2}\u{2070}+a\u{2081}", "x^{20}+a_{1}"),
            ("10\u{207b}\u{b3}", "10^{-3}"),
            ("\u{221a}12 + \u{221a}(3)", "\\sqrt{12} + \\sqrt(3)"),
            ("3\u{bd}", "3\\frac{1}{2}"),
            ("\u{ff11}\u{ff12}\u{ff05}", "12%"),
            ("1\u{a0}200\u{202f}000\u{200b}", "1 200 000"),
            ("\u{663}\u{664}", "34"),
            ("2\u{3c0}", "2\\pi "),
        ] {
            assert_eq!(ascii(text), want, "{text}");
        }
    }
}
