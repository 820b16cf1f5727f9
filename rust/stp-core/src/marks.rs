//! What a position of a completion and the end of a row are marked with, in one place for every reader.

/// Declares named constants, and the table that other languages read their names from.
macro_rules! marks {
    ($(#[$doc:meta])* $table:ident: $($(#[$each:meta])* $name:ident = $value:literal;)*) => {
        $($(#[$each])* pub const $name: i32 = $value;)*
        $(#[$doc])*
        pub const $table: &[(&str, i32)] = &[$((stringify!($name), $name)),*];
    };
}

marks! {
    /// What `unmask_step` says of a position that no forward revealed; all are negative, steps count from 0.
    MARKS:
    /// A prior fixed it before decoding.
    PRIOR = -1;
    /// It lies beyond the row's completion.
    OUTSIDE = -2;
    /// Nobody drew it: the row ended before, and it was filled with the end-of-text token. It was masked in every state.
    UNDRAWN = -3;
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// It has not ended.
    Running = 0,
    /// Its plan reached the end.
    Plan = 1,
    /// Its temporal rule committed the rest.
    Temporal = 2,
    /// Its forward budget committed the rest.
    MaxNfe = 3,
    /// The prior fixed every position: no forward was needed.
    Prior = 4,
    /// Everything up to its first end-of-text token was revealed.
    Eos = 5,
}

impl Stop {
    /// The reasons of rows that have ended, by name.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("PLAN", Self::Plan),
        ("TEMPORAL", Self::Temporal),
        ("MAX_NFE", Self::MaxNfe),
        ("PRIOR", Self::Prior),
        ("EOS", Self::Eos),
    ];
}
