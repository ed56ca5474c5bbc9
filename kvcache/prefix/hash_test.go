package prefix_test

import (
	"encoding/hex"
	"errors"
	"testing"

	"github.com/longctx/longctx/kvcache/prefix"
)

// goldenTokens take CBOR integers of all lengths that an int32 can have.
var goldenTokens = []int32{0, 1, 23, 24, 255, 256, 65535, 65536, 2147483647, 7, 8, 9, 10}

// TestVLLMHashes: the hashes of testdata/vllm_hashes.py.
func TestVLLMHashes(t *testing.T) {
	var long []int32
	for i := range int32(600) {
		long = append(long, 100000+i)
	}
	for _, tt := range []struct {
		name, seed string
		prompt     prefix.Prompt
		size       int
		want       []string
	}{
		{"tokens alone", "0", prefix.Prompt{Tokens: goldenTokens}, 4, []string{
			"2c9bae251e8c16e19ba70869529e4e41cdc9419aa0b696a7622e80e7e6c5fe9f",
			"b4a6929c0792383fd01dcff0f40bf018e5b9deea09e370c3521a3ade6c74cc9b",
			"a23490cd38c74a8fbb24fae0fdfc978307545209404edc2581b00346754f5377"}},
		{"adapter", "42", prefix.Prompt{Adapter: "adapter", Tokens: goldenTokens}, 4, []string{
			"4aa80a4bdaf763856c5c8605b5a7fa82a9558e1a17ac839c5cde8b133c675fb1",
			"edc0ce226a9d9aa570768e486ec30f32daa1e2125b62e0012718ffed5b9a9b4a",
			"51bb3e4364fff9ea374109434b730d734c7adda7eed1fb6c11a3161466edcaee"}},
		{"salt", "0", prefix.Prompt{Salt: "salt", Tokens: goldenTokens}, 4, []string{
			"d6e250464409e1fe561115958b9b3089600abd692f2382fc647970dd044eda4f",
			"764a34550ebecb3c8fef327bc67bee95f45af522f6ee55a176c72ab496906211",
			"e2773fb92e5925598d395638083991ba2ac6be696847e8b17dfa6acdc6aec75b"}},
		{"all", "0", prefix.Prompt{Adapter: "lora-1", Salt: "sé", Tokens: goldenTokens,
			Media: []prefix.Media{{ID: "img-a", Offset: 2, Length: 3}, {ID: "img-b", Offset: 6, Length: 6}}}, 4, []string{
			"d7d1adfcd5fca1fafa20f357e0e5b75bb07a098e6a515cb1e796f4567d0d5300",
			"ebcf399497ff541627bedb2b160944c6e21c392fcb54a6c7fe6b36d0e0c9f742",
			"bceb6148543ed8d0baafe3f1d28db2514b5f13292263b77851b2942983d366d8"}},
		{"long blocks", "0", prefix.Prompt{Tokens: long}, 300, []string{
			"3f6ccd25fb997691ca4a0827cca6734935e587296ec13d126579131f51ebaee9",
			"f5f18305eacea085f65604d8ed1b41fceb11ffa8b669f6a73ff0990cea85a08f"}},
	} {
		got, err := prefix.Hashes(prefix.NewVLLM(tt.seed), &tt.prompt, tt.size)
		if err != nil || len(got) != len(tt.want) {
			t.Fatalf("%s: %d hashes (%v), want %d", tt.name, len(got), err, len(tt.want))
		}
		for i, h := range got {
			if x := hex.EncodeToString(h[:]); x != tt.want[i] {
				t.Errorf("%s: block %d is %s, want %s", tt.name, i, x, tt.want[i])
			}
		}
	}
}

// TestHashesTellApart: no two of these prompts have a page in common, by any
// concatenation of their parts. vLLM's scheme does mix two of them up, as its
// comment says.
func TestHashesTellApart(t *testing.T) {
	tokens := []int32{1, 2, 3, 4}
	prompts := []prefix.Prompt{
		{Tokens: tokens},
		{Tokens: tokens, Namespace: "ab"}, {Tokens: tokens, Salt: "ab"}, {Tokens: tokens, Adapter: "ab"},
		{Tokens: tokens, Namespace: "a", Salt: "b"}, {Tokens: tokens, Salt: "a", Adapter: "b"}, {Tokens: tokens, Namespace: "a", Adapter: "b"},
		{Tokens: tokens, Namespace: "s\x01b"}, {Tokens: tokens, Namespace: "a\x00s\x01b"},
		{Tokens: tokens, Media: []prefix.Media{{ID: "ab", Offset: 0, Length: 2}}},
		{Tokens: tokens, Media: []prefix.Media{{ID: "ab", Offset: 1, Length: 2}}},
		{Tokens: tokens, Media: []prefix.Media{{ID: "ab", Offset: 0, Length: 3}}},
		{Tokens: tokens, Media: []prefix.Media{{ID: "a", Offset: 0, Length: 1}, {ID: "b", Offset: 1, Length: 1}}},
	}
	seen := map[prefix.Hash]int{}
	for i := range prompts {
		h, err := prefix.Hashes(prefix.SHA256{}, &prompts[i], 4)
		if err != nil {
			t.Fatal(err)
		}
		if j, ok := seen[h[0]]; ok {
			t.Errorf("prompts %d and %d have one hash", j, i)
		}
		seen[h[0]] = i
	}
	if _, err := prefix.Hashes(prefix.SHA256{}, &prompts[0], 0); !errors.As(err, new(*prefix.ValueError)) {
		t.Errorf("pages of no tokens: %v", err)
	}
	for _, media := range [][]prefix.Media{
		{{ID: "a", Offset: -1, Length: 2}},
		{{ID: "a", Offset: 0, Length: 0}},
		{{ID: "a", Offset: 0, Length: 2}, {ID: "b", Offset: 1, Length: 1}},
		{{ID: "a", Offset: 1 << 30, Length: 1 << 30}},
	} {
		if _, err := prefix.Hashes(prefix.SHA256{}, &prefix.Prompt{Tokens: tokens, Media: media}, 4); !errors.As(err, new(*prefix.ValueError)) {
			t.Errorf("media %v: %v", media, err)
		}
	}
}
