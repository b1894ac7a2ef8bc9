#include "refused/definition.hpp"

struct Misspelt : Whole {
  State make_state(seqmix::Index) const { return {}; }
};
int main() { seqmix::Mixer<Misspelt> layer({}, {}); }
