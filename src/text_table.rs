//! Tables in the style of netstat: a line with names, and columns as wide as their widest entry.

use std::fmt;

/// A column: its name, and whether its entries are numbers, which are right-aligned.
pub(crate) type Column = (&'static str, bool);

/// Writes a table, without a final end of line and without trailing spaces.
pub(crate) fn write<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    columns: [Column; N],
    rows: &[[String; N]],
) -> fmt::Result {
    let width = |at: usize| {
        let entries = rows.iter().map(|row| row[at].chars().count());
        entries.fold(columns[at].0.chars().count(), usize::max)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let names = columns.map(|(name, _)| name);
    line(f, &columns, &widths, names)?;
    rows.iter().try_for_each(|row| {
        f.write_str("\n")?;
        line(f, &columns, &widths, row.each_ref().map(String::as_str))
    })
}

fn line<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    columns: &[Column; N],
    widths: &[usize; N],
    entries: [&str; N],
) -> fmt::Result {
    // Empty entries at the end of a line are left out, with the spaces before them.
    let last = entries.iter().rposition(|entry| !entry.is_empty());
    for at in 0..last.map_or(0, |last| last + 1) {
        let (entry, width) = (entries[at], widths[at]);
        let gap = if at == 0 { "" } else { "  " };
        match (columns[at].1, Some(at) == last) {
            (true, _) => write!(f, "{gap}{entry:>width$}")?,
            (false, true) => write!(f, "{gap}{entry}")?,
            (false, false) => write!(f, "{gap}{entry:width$}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table;

    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let rows = [["a", "1", "x"], ["long", "100", ""], ["b", "", ""]];
            let rows = rows.map(|row| row.map(str::to_owned));
            write(f, [("Name", false), ("N", true), ("Last", false)], &rows)
        }
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let lines = ["Name    N  Last", "a       1  x", "long  100", "b"];
        assert_eq!(Table.to_string(), lines.join("\n"));
    }
}
