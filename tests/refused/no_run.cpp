#include "refused/definition.hpp"

struct Misspelt : Whole {
  void run(seqmix::View<const float, 3>, State&, seqmix::View<float, 3>, seqmix::Context&) const {}
};
int main() { seqmix::Mixer<Misspelt> layer({}, {}); }
