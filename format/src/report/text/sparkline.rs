//! A series of numbers as a row of bars.

const GLYPHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One bar per value, scaled so that the smallest value has the lowest bar and the largest the
/// highest. Negative values count as 0. A series that never changes shows low bars if it is all
/// zero and middling ones if not.
pub(super) fn sparkline(values: impl IntoIterator<Item = i64>) -> String {
    let values: Vec<u128> = values
        .into_iter()
        .map(|value| u128::try_from(value).unwrap_or(0))
        .collect();
    let (Some(&min), Some(&max)) = (values.iter().min(), values.iter().max()) else {
        return String::new();
    };
    let span = max - min;
    values
        .iter()
        .map(|&value| {
            let step = match ((value - min) * 7).checked_div(span) {
                Some(step) => usize::try_from(step).unwrap_or(0),
                None if max == 0 => 0,
                None => 4,
            };
            GLYPHS.get(step).copied().unwrap_or('█')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::sparkline;

    #[test]
    fn bars() {
        assert_eq!(sparkline([]), "");
        assert_eq!(sparkline([0, 0, -5]), "▁▁▁");
        assert_eq!(sparkline([9, 9]), "▅▅");
        assert_eq!(sparkline([0, 1, 2, 3, 4, 5, 6, 7]), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline([100, 103, 107]), "▁▄█");
        assert_eq!(sparkline([i64::MIN, i64::MAX]), "▁█");
        assert_eq!(sparkline([0, i64::MAX / 2, i64::MAX]), "▁▄█");
    }
}
