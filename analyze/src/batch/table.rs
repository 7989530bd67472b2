//! The table of a run: a row for each finding of each capture, and one for each capture without.

use std::io::Write;

use super::row::{CaptureRow, Cell, FindingRow};

/// Writes the rows of a table one after another.
pub(super) trait Table {
    /// Adds the rows of one capture.
    ///
    /// # Errors
    /// A sentence.
    fn add(&mut self, capture: &CaptureRow, findings: &[FindingRow]) -> Result<(), String>;

    /// Writes what is left.
    ///
    /// # Errors
    /// A sentence.
    fn finish(&mut self) -> Result<(), String>;
}

/// Calls `add` with each finding of a capture, or once without any.
fn each(
    findings: &[FindingRow],
    mut add: impl FnMut(Option<(usize, &FindingRow)>) -> Result<(), String>,
) -> Result<(), String> {
    if findings.is_empty() {
        return add(None);
    }
    findings
        .iter()
        .enumerate()
        .try_for_each(|finding| add(Some(finding)))
}

/// JSON, a row in a line, with all columns in each.
pub(super) struct Lines<W: Write>(pub(super) W);

impl<W: Write> Table for Lines<W> {
    fn add(&mut self, capture: &CaptureRow, findings: &[FindingRow]) -> Result<(), String> {
        each(findings, |finding| {
            let mut line = Vec::new();
            for (name, cell) in capture.columns(finding) {
                line.push(if line.is_empty() { b'{' } else { b',' });
                let value = match cell {
                    Cell::Text(text) => serde_json::to_string(&text),
                    Cell::Number(number) => serde_json::to_string(&number),
                };
                let value = value.map_err(|e| e.to_string())?;
                line.extend_from_slice(format!("\"{name}\":{value}").as_bytes());
            }
            line.extend_from_slice(b"}\n");
            self.0.write_all(&line).map_err(|e| e.to_string())
        })
    }

    fn finish(&mut self) -> Result<(), String> {
        self.0.flush().map_err(|e| e.to_string())
    }
}

/// The table in Apache Parquet.
///
/// # Errors
/// A sentence; always in a build without it.
#[cfg(feature = "parquet")]
pub(super) fn columns(out: impl Write + Send + 'static) -> Result<Box<dyn Table>, String> {
    Ok(Box::new(parquet_table::Columns::new(out)?))
}

#[cfg(not(feature = "parquet"))]
pub(super) fn columns(_: impl Write + Send + 'static) -> Result<Box<dyn Table>, String> {
    Err("this analyze cannot write Parquet".to_owned())
}

#[cfg(feature = "parquet")]
mod parquet_table {
    use std::io::Write;
    use std::sync::Arc;

    use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::types::Type;

    use super::{CaptureRow, Cell, FindingRow, Table, each};

    /// Rows that are held before they are written, and bytes of their texts: what bounds the memory
    /// of a long table.
    const GROUP_ROWS: usize = 4096;
    const GROUP_BYTES: usize = 16 << 20;

    /// The values of one column that are not written yet.
    enum Held {
        Texts(Vec<Option<ByteArray>>),
        Numbers(Vec<Option<i64>>),
    }

    /// Apache Parquet.
    pub(super) struct Columns<W: Write + Send> {
        /// Taken when it is finished.
        out: Option<SerializedFileWriter<W>>,
        held: Vec<Held>,
        rows: usize,
        bytes: usize,
    }

    impl<W: Write + Send> Columns<W> {
        /// Begins a table.
        ///
        /// # Errors
        /// A sentence.
        pub(super) fn new(out: W) -> Result<Self, String> {
            let row = CaptureRow::default();
            let mut held = Vec::new();
            let mut fields = Vec::new();
            for (name, cell) in row.columns(None) {
                let field = match cell {
                    Cell::Text(_) => {
                        held.push(Held::Texts(Vec::new()));
                        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                            .with_converted_type(ConvertedType::UTF8)
                    }
                    Cell::Number(_) => {
                        held.push(Held::Numbers(Vec::new()));
                        Type::primitive_type_builder(name, Physical::INT64)
                    }
                };
                let field = field.with_repetition(Repetition::OPTIONAL).build();
                fields.push(Arc::new(field.map_err(|e| e.to_string())?));
            }
            let schema = Type::group_type_builder("captures")
                .with_fields(fields)
                .build();
            let properties = WriterProperties::builder()
                .set_compression(Compression::SNAPPY)
                .set_created_by(concat!("scx-postmortem ", env!("CARGO_PKG_VERSION")).to_owned())
                .build();
            let schema = Arc::new(schema.map_err(|e| e.to_string())?);
            let out = SerializedFileWriter::new(out, schema, Arc::new(properties));
            Ok(Self {
                out: Some(out.map_err(|e| e.to_string())?),
                held,
                rows: 0,
                bytes: 0,
            })
        }

        fn write_group(&mut self) -> Result<(), String> {
            let Some(out) = self.out.as_mut().filter(|_| self.rows > 0) else {
                return Ok(());
            };
            let mut write = || -> parquet::errors::Result<()> {
                let mut group = out.next_row_group()?;
                for held in &mut self.held {
                    let Some(mut column) = group.next_column()? else {
                        break;
                    };
                    match held {
                        Held::Texts(texts) => {
                            let levels: Vec<i16> =
                                texts.iter().map(|t| i16::from(t.is_some())).collect();
                            let texts: Vec<ByteArray> =
                                std::mem::take(texts).into_iter().flatten().collect();
                            let typed = column.typed::<ByteArrayType>();
                            typed.write_batch(&texts, Some(&levels), None)?;
                        }
                        Held::Numbers(numbers) => {
                            let levels: Vec<i16> =
                                numbers.iter().map(|n| i16::from(n.is_some())).collect();
                            let numbers: Vec<i64> =
                                std::mem::take(numbers).into_iter().flatten().collect();
                            let typed = column.typed::<Int64Type>();
                            typed.write_batch(&numbers, Some(&levels), None)?;
                        }
                    }
                    column.close()?;
                }
                group.close()?;
                Ok(())
            };
            write().map_err(|e| e.to_string())?;
            self.rows = 0;
            self.bytes = 0;
            Ok(())
        }
    }

    impl<W: Write + Send> Table for Columns<W> {
        fn add(&mut self, capture: &CaptureRow, findings: &[FindingRow]) -> Result<(), String> {
            each(findings, |finding| {
                for ((_, cell), held) in capture.columns(finding).into_iter().zip(&mut self.held) {
                    match (cell, held) {
                        (Cell::Text(text), Held::Texts(texts)) => {
                            self.bytes += text.map_or(0, str::len);
                            texts.push(text.map(ByteArray::from));
                        }
                        (Cell::Number(number), Held::Numbers(numbers)) => numbers.push(number),
                        // Columns have one type in all rows.
                        _ => return Err("a column has changed its type".to_owned()),
                    }
                }
                self.rows += 1;
                if self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
                    self.write_group()?;
                }
                Ok(())
            })
        }

        fn finish(&mut self) -> Result<(), String> {
            self.write_group()?;
            match self.out.take() {
                Some(out) => out.close().map(|_| ()).map_err(|e| e.to_string()),
                None => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_all_columns_and_stays_a_line() {
        let capture = CaptureRow {
            input: "a\n\"b\"".into(),
            exit_kind: Some(1026),
            ..CaptureRow::default()
        };
        let finding = FindingRow {
            rule: "idle".into(),
            ..FindingRow::default()
        };
        let mut out = Vec::new();
        let mut lines = Lines(&mut out);
        lines.add(&capture, &[finding.clone(), finding]).unwrap();
        lines.add(&capture, &[]).unwrap();
        lines.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows.len(), 3);
        for row in &rows {
            assert_eq!(row.as_object().unwrap().len(), capture.columns(None).len());
            assert_eq!(row["input"], "a\n\"b\"");
            assert_eq!(row["exit_kind"], 1026);
            assert!(row["scheduler"].is_null());
        }
        assert_eq!(
            (&rows[0]["finding"], &rows[1]["finding"]),
            (&1.into(), &2.into())
        );
        assert_eq!(rows[1]["finding_rule"], "idle");
        assert!(rows[2]["finding"].is_null());
    }
}
