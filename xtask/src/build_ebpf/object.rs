//! What the linker gives, made fit for kernels and for a repository.

use anyhow::{Context, Result, bail, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Drops the debug information (seven eighths of the file, and nothing the kernel reads), and mends the BTF.
pub(crate) fn finish(linked: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(linked)?;
    for section in &mut elf.sections {
        let name = section.name.to_string();
        let name = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = name.starts_with(".debug_");
        if name == ".BTF"
            && let SectionData::Data(btf) = &mut section.data
        {
            mend_names(btf.to_mut())?;
        }
    }
    // The linker keeps the sections' names among the symbols'; the writer wants a place of their own for them.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut finished = Vec::new();
    elf.write(&mut finished)?;
    Ok(finished)
}

/// Puts `_` for what kernels do not take in a type's name. Rust's `MaybeUninit<u8>`, which aya-log brings, is such a name,
/// and with it the kernel refuses the whole BTF, without which there is no socket storage. The length stays, so that no
/// offset moves.
fn mend_names(btf: &mut [u8]) -> Result<()> {
    ensure!(word(btf, 0)? & 0xffff == 0xeb9f, "no BTF, or of a big-endian machine");
    let header = word(btf, 4)?;
    let (types, types_size) = (header + word(btf, 8)?, word(btf, 12)?);
    let strings = header + word(btf, 16)?;
    let mut at = types;
    while at < types + types_size {
        let (name, info) = (word(btf, at)?, word(btf, at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
        at += 12;
        // A data section's name must stay that of its section, and may have other characters.
        if kind != DATA_SECTION {
            mend_name(btf, strings + name)?;
        }
        let (member, named) = match kind {
            INT | VARIABLE | DECLARATION_TAG => (4, false),
            ARRAY => (12, false),
            STRUCT | UNION => (12, true),
            ENUM => (8, true),
            ENUM64 => (12, true),
            PROTOTYPE => (8, true),
            DATA_SECTION => (12, false),
            POINTER | FORWARD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNCTION | FLOAT | TYPE_TAG => {
                (0, false)
            }
            unknown => bail!("a BTF type of kind {unknown}"),
        };
        let members = match kind {
            STRUCT | UNION | ENUM | ENUM64 | PROTOTYPE | DATA_SECTION => count,
            _ => 1,
        };
        for index in 0..members {
            if named {
                let name = word(btf, at + index * member)?;
                mend_name(btf, strings + name)?;
            }
        }
        at += members * member;
    }
    Ok(())
}

// Kinds of BTF types, by the kernel's numbers.
const INT: usize = 1;
const POINTER: usize = 2;
const ARRAY: usize = 3;
const STRUCT: usize = 4;
const UNION: usize = 5;
const ENUM: usize = 6;
const FORWARD: usize = 7;
const TYPEDEF: usize = 8;
const VOLATILE: usize = 9;
const CONST: usize = 10;
const RESTRICT: usize = 11;
const FUNCTION: usize = 12;
const PROTOTYPE: usize = 13;
const VARIABLE: usize = 14;
const DATA_SECTION: usize = 15;
const FLOAT: usize = 16;
const DECLARATION_TAG: usize = 17;
const TYPE_TAG: usize = 18;
const ENUM64: usize = 19;

fn mend_name(btf: &mut [u8], at: usize) -> Result<()> {
    let name = btf.get_mut(at..).context("a name outside the BTF")?;
    for byte in name.iter_mut().take_while(|byte| **byte != 0) {
        if !byte.is_ascii_alphanumeric() && !b"_.".contains(byte) {
            *byte = b'_';
        }
    }
    Ok(())
}

fn word(btf: &[u8], at: usize) -> Result<usize> {
    let bytes = btf.get(at..).and_then(|rest| rest.first_chunk::<4>()).context("the BTF ends too early")?;
    Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with a struct of two members and an integer, whose names are `names`.
    fn btf(names: [&str; 4]) -> (Vec<u8>, Vec<usize>) {
        let mut strings = vec![0];
        let offsets = names.map(|name| {
            let at = strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            at
        });
        let [outer, first, second, int] = offsets;
        let types =
            [[outer, 4 << 24 | 2, 8].as_slice(), &[first, 2, 0], &[second, 2, 32], &[int, 1 << 24, 4], &[32]]
                .concat();
        let size = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, size, size, strings.len() as u32];
        let words = header.iter().chain(&types).flat_map(|word| word.to_le_bytes());
        let start = 24 + size as usize;
        let offsets = offsets.iter().map(|at| start + *at as usize).collect();
        (words.chain(strings).collect(), offsets)
    }

    fn name(btf: &[u8], at: usize) -> String {
        btf[at..].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
    }

    #[test]
    fn names_that_kernels_refuse_are_mended_in_types_and_members() {
        let (mut btf, at) = btf(["MaybeUninit<u8>", "a b", "fine_1", "i32"]);
        let length = btf.len();
        mend_names(&mut btf).unwrap();
        assert_eq!(btf.len(), length);
        let names: Vec<String> = at.iter().map(|at| name(&btf, *at)).collect();
        assert_eq!(names, ["MaybeUninit_u8_", "a_b", "fine_1", "i32"]);
    }

    #[test]
    fn names_that_kernels_take_stay() {
        let (mut btf, _) = btf(["Caller", ".rodata", "x", "u64"]);
        let before = btf.clone();
        mend_names(&mut btf).unwrap();
        assert_eq!(btf, before);
    }

    #[test]
    fn btf_that_ends_too_early_or_is_none_is_an_error() {
        let (whole, _) = btf(["A", "b", "c", "d"]);
        for length in 0..24 + 52 {
            let mut cut = whole[..length].to_vec();
            assert!(mend_names(&mut cut).is_err(), "{length} bytes");
        }
        assert!(mend_names(&mut [0; 64]).is_err());
    }
}
