package bf16

import (
	"strings"
	"testing"
)

// Bytes as GNU as writes them.
func TestEncoding(t *testing.T) {
	for _, c := range []struct {
		emit func(*gen)
		want string
	}{
		{func(g *gen) { g.ldtilecfg("AX") }, "c4 e2 78 49 00"},
		{func(g *gen) { g.ldtilecfg("SP") }, "c4 e2 78 49 04 24"},
		{func(g *gen) { g.tilerelease() }, "c4 e2 78 49 c0"},
		{func(g *gen) { g.tilezero(3) }, "c4 e2 7b 49 d8"},
		{func(g *gen) { g.tileload(4, 0, "SI", "R8") }, "c4 a2 7b 4b 24 06"},
		{func(g *gen) { g.tileload(4, 1024, "R9", "R8") }, "c4 82 7b 4b a4 01 00 04 00 00"},
		{func(g *gen) { g.tilestore(5, 64, "DI", "CX") }, "c4 e2 7a 4b 6c 0f 40"},
		{func(g *gen) { g.tdp(1, 4, 6) }, "c4 e2 4a 5c cc"},
		{func(g *gen) { g.dpBroadcast(9, 17, 0, "DX") }, "62 72 76 50 52 0a"},
		{func(g *gen) { g.dpBroadcast(29, 17, 256, "R10") }, "62 42 76 50 52 6a 40"},
		{func(g *gen) { g.dpBroadcast(29, 17, 4, "R10") }, "62 42 76 50 52 6a 01"},
		{func(g *gen) { g.cvt2(29, 18, 3) }, "62 62 6f 40 72 eb"},
	} {
		g := &gen{}
		c.emit(g)
		text, mnemonic, _ := strings.Cut(g.text.String(), " // ")
		got := strings.TrimSpace(strings.NewReplacer("BYTE $0x", "", ";", "").Replace(text))
		if got != c.want {
			t.Errorf("%s is %s, want %s", strings.TrimSpace(mnemonic), got, c.want)
		}
	}
}
