//! A filter tells for most keys that they are not in a set, at the price of one access to memory.
//!
//! It is a Bloom filter in blocks of 64 bytes, one cache line: a key's hash names its block and one bit in each of its eight words.
//! With 16 bits a key about one key in 900 that is not in the set looks as if it were; those are looked up. The bits are the
//! same in every filter, so they are worked out once for all that are asked ([`Probe`]).

/// Bits a key.
const BITS_A_KEY: u64 = 16;

/// Bytes of a block.
const BLOCK_LEN: usize = 64;

/// One cache line.
#[derive(Debug, Clone, Default)]
#[repr(align(64))]
struct Block([u64; 8]);

/// A key as filters are asked for it.
#[derive(Debug)]
pub(super) struct Probe {
    pub hash: u64,
    /// A bit in each word of a block.
    marks: [u64; 8],
}

impl Probe {
    /// Six bits of the hash for each word. Its upper bits name the block.
    pub fn new(hash: u64) -> Probe {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        Probe {
            hash,
            marks: std::array::from_fn(|word| 1 << ((mixed >> (word * 6)) & 63)),
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Filter {
    blocks: Vec<Block>,
}

impl Filter {
    /// An empty one for so many keys.
    pub fn new(keys: u64) -> Filter {
        let blocks = (keys * BITS_A_KEY).div_ceil(8 * BLOCK_LEN as u64).max(1);
        Filter {
            blocks: vec![Block::default(); blocks as usize],
        }
    }

    fn block_of(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.blocks.len() as u128) >> 64) as usize
    }

    /// Takes a key up.
    pub fn insert(&mut self, hash: u64) {
        let block = self.block_of(hash);
        for (word, mark) in self.blocks[block].0.iter_mut().zip(Probe::new(hash).marks) {
            *word |= mark;
        }
    }

    /// `false`: the key is not in the set.
    pub fn may_hold(&self, probe: &Probe) -> bool {
        let block = &self.blocks[self.block_of(probe.hash)].0;
        let words = block.iter().zip(&probe.marks);
        // Without a branch for each word: which of them tells is anybody's guess.
        words.fold(0, |missing, (word, mark)| missing | (mark & !word)) == 0
    }

    /// As stored.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let words = self.blocks.iter().flat_map(|block| block.0);
        bytes.extend(words.flat_map(u64::to_le_bytes));
    }

    /// From what was stored.
    pub fn decode(bytes: &[u8]) -> Option<Filter> {
        let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
        if blocks.is_empty() || !rest.is_empty() {
            return None;
        }
        let block = |bytes: &[u8; BLOCK_LEN]| {
            let (words, _) = bytes.as_chunks::<8>();
            let mut block = Block::default();
            for (word, bytes) in block.0.iter_mut().zip(words) {
                *word = u64::from_le_bytes(*bytes);
            }
            block
        };
        Some(Filter {
            blocks: blocks.iter().map(block).collect(),
        })
    }

    /// Bytes of it in memory and on disk.
    pub fn len(&self) -> usize {
        self.blocks.len() * BLOCK_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_in_it_is_denied_and_little_else_is_admitted() {
        let mut random = fastrand::Rng::with_seed(3);
        for keys in [0, 1, 31, 100_000] {
            let inside: Vec<u64> = (0..keys).map(|_| random.u64(..)).collect();
            let mut filter = Filter::new(keys);
            for hash in &inside {
                filter.insert(*hash);
            }
            let mut bytes = Vec::new();
            filter.encode(&mut bytes);
            assert_eq!(bytes.len(), filter.len());
            assert!(filter.len() as u64 <= keys * 2 + 64);
            let read_back = Filter::decode(&bytes).unwrap();
            assert!(inside.iter().all(|hash| read_back.may_hold(&Probe::new(*hash))));
            let wrong = (0..100_000)
                .filter(|_| read_back.may_hold(&Probe::new(random.u64(..))))
                .count();
            assert!(wrong < 300, "{wrong} of 100000 strange keys, of {keys}");
        }
        assert!(Filter::decode(&[]).is_none() && Filter::decode(&[0; 65]).is_none());
    }
}
