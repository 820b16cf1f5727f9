//! Exact rationals in 128 bits. Every operation is checked: a value that does not fit is `None`, never wrong.

use std::cmp::Ordering;

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    num: i128,
    den: i128,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.den == 1 { write!(f, "{}", self.num) } else { write!(f, "{}/{}", self.num, self.den) }
    }
}

fn gcd(a: i128, b: i128) -> i128 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i128::try_from(a).unwrap_or(1)
}

impl Ratio {
    /// The integer `value`.
    #[must_use]
    pub fn int(value: i64) -> Self {
        Self { num: i128::from(value), den: 1 }
    }

    /// `num / den` in lowest terms; `None` for a zero denominator or an overflow.
    #[must_use]
    pub fn new(num: i128, den: i128) -> Option<Self> {
        if den == 0 {
            return None;
        }
        let g = gcd(num, den).max(1);
        let (num, den) = (num / g, den / g);
        if den < 0 {
            Some(Self { num: num.checked_neg()?, den: den.checked_neg()? })
        } else {
            Some(Self { num, den })
        }
    }

    /// A decimal literal `digits[.digits]`; `None` where it is malformed or too long to be exact.
    #[must_use]
    pub fn decimal(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + part.len() == 0 || whole.len() + part.len() > 30 || !digits(whole) || !digits(part) {
            return None;
        }
        let fold = |acc: i128, b: u8| acc * 10 + i128::from(b - b'0');
        let num = whole.bytes().chain(part.bytes()).fold(0, fold);
        let den = (0..part.len()).fold(1_i128, |acc, _| acc * 10);
        Self::new(num, den)
    }

    /// The numerator (it carries the sign).
    #[must_use]
    pub fn num(self) -> i128 {
        self.num
    }

    /// The denominator, always positive.
    #[must_use]
    pub fn den(self) -> i128 {
        self.den
    }

    /// The negative.
    #[must_use]
    pub fn checked_neg(self) -> Option<Self> {
        Some(Self { num: self.num.checked_neg()?, den: self.den })
    }

    /// The sum.
    #[must_use]
    pub fn checked_add(self, o: Self) -> Option<Self> {
        let left = self.num.checked_mul(o.den)?;
        let right = o.num.checked_mul(self.den)?;
        Self::new(left.checked_add(right)?, self.den.checked_mul(o.den)?)
    }

    /// The difference.
    #[must_use]
    pub fn checked_sub(self, o: Self) -> Option<Self> {
        self.checked_add(o.checked_neg()?)
    }

    /// The product.
    #[must_use]
    pub fn checked_mul(self, o: Self) -> Option<Self> {
        Self::new(self.num.checked_mul(o.num)?, self.den.checked_mul(o.den)?)
    }

    /// The quotient; `None` for a zero divisor.
    #[must_use]
    pub fn checked_div(self, o: Self) -> Option<Self> {
        if o.num == 0 {
            return None;
        }
        Self::new(self.num.checked_mul(o.den)?, self.den.checked_mul(o.num)?)
    }

    /// The order of two values; `None` on overflow.
    #[must_use]
    pub fn compare(self, o: Self) -> Option<Ordering> {
        Some(self.num.checked_mul(o.den)?.cmp(&o.num.checked_mul(self.den)?))
    }

    /// The nearest float, for reports.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.num as f64 / self.den as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimals_and_fractions_are_exact() {
        assert_eq!(Ratio::decimal("0.25"), Ratio::new(1, 4));
        assert_eq!(Ratio::decimal(".5"), Ratio::new(-1, -2));
        assert_eq!(Ratio::decimal("18.0"), Some(Ratio::int(18)));
        for bad in ["", ".", "1.2.3", "1e5", "-1", "1234567890123456789012345678901"] {
            assert_eq!(Ratio::decimal(bad), None, "{bad}");
        }
    }

    #[test]
    fn overflow_and_zero_divisors_are_none() {
        let big = Ratio::new(i128::MAX, 1).unwrap();
        assert_eq!(big.checked_mul(big), None);
        assert_eq!(big.checked_add(Ratio::int(1)), None);
        assert_eq!(Ratio::int(1).checked_div(Ratio::int(0)), None);
        assert_eq!(Ratio::new(i128::MIN, -1), None);
    }

    proptest! {
        #[test]
        fn field_laws(a in -1000i64..1000, b in -1000i64..1000, c in 1i64..1000) {
            let (x, y) = (Ratio::int(a).checked_div(Ratio::int(c)).unwrap(), Ratio::int(b));
            prop_assert_eq!(x.checked_add(y).unwrap().checked_sub(y), Some(x));
            if b != 0 {
                prop_assert_eq!(x.checked_mul(y).unwrap().checked_div(y), Some(x));
            }
            prop_assert_eq!(x.checked_add(y), y.checked_add(x));
            let float = (a as f64 / c as f64).partial_cmp(&(b as f64));
            prop_assert_eq!(x.compare(y), float);
        }
    }
}
