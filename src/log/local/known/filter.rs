//! A filter tells for most keys that they are not in a set, at the price of one access to memory.
//!
//! It is a Bloom filter in blocks of 64 bytes, one cache line: a key's hash names its block and seven bits in it. With 16 bits a
//! key about one key in 800 that is not in the set looks as if it were; those are looked up.

/// Bits a key.
const BITS_A_KEY: u64 = 16;

/// Bits of a block that a key sets.
const MARKS: u32 = 7;

/// Bytes of a block.
const BLOCK_LEN: usize = 64;

/// One cache line.
#[derive(Debug, Clone, Default)]
#[repr(align(64))]
struct Block([u64; 8]);

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

    /// The bits of a block that a key sets: nine bits of the hash each. The hash's upper bits have named the block.
    fn marks(hash: u64) -> impl Iterator<Item = (usize, u64)> {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..MARKS).map(move |mark| {
            let bit = (mixed >> (mark * 9)) & 511;
            ((bit >> 6) as usize, 1 << (bit & 63))
        })
    }

    /// Takes a key up.
    pub fn insert(&mut self, hash: u64) {
        let block = self.block_of(hash);
        for (word, bit) in Filter::marks(hash) {
            self.blocks[block].0[word] |= bit;
        }
    }

    /// `false`: the key is not in the set.
    pub fn may_hold(&self, hash: u64) -> bool {
        let block = &self.blocks[self.block_of(hash)].0;
        Filter::marks(hash).all(|(word, bit)| block[word] & bit != 0)
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
            inside.iter().for_each(|hash| filter.insert(*hash));
            let mut bytes = Vec::new();
            filter.encode(&mut bytes);
            assert_eq!(bytes.len(), filter.len());
            assert!(filter.len() as u64 <= keys * 2 + 64);
            let read_back = Filter::decode(&bytes).unwrap();
            assert!(inside.iter().all(|hash| read_back.may_hold(*hash)));
            let wrong = (0..100_000).filter(|_| read_back.may_hold(random.u64(..))).count();
            assert!(wrong < 300, "{wrong} of 100000 strange keys, of {keys}");
        }
        assert!(Filter::decode(&[]).is_none() && Filter::decode(&[0; 65]).is_none());
    }
}
