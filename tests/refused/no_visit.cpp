#include "refused/definition.hpp"

struct Misspelt : Whole {
  struct Weights {
    static void vist(auto&, const Config&, auto&&) {}
  };
  Weights w;
};
int main() { seqmix::Mixer<Misspelt> layer({}, {}); }
