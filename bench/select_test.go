package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func TestSelectRecallsAllWhereAllIsSeen(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-json -keys 200,513 -page 16 -pages 33 -repeats 1")); err != nil {
		t.Fatal(err)
	}
	var got []selectResult
	names := selectorNames()
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 2*len(names) {
		t.Fatalf("%v: %s", err, &out)
	}
	for i, r := range got {
		if r.Selector != names[i%len(names)] {
			t.Errorf("%+v is line %d", r, i)
		}
		mass, least := 0.0, 0.0
		switch r.Selector {
		case "magicpig": // finds the planted keys
			if r.Mass < 0.9 || r.Mass > 1.00001 || r.Error > 0.3 {
				t.Errorf("%+v, want a mass of 0.9 to 1", r)
			}
			continue
		case "retrieval": // in two passes
			mass, least = 1e-5, 1e-5
		case "sparq-mean": // its shares are rounded
			least = 1e-6
		}
		if math.Abs(r.Mass-1) > mass || r.Error > least {
			t.Errorf("%+v, want all mass and no error", r)
		}
	}
}

func TestSelectOfOne(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-keys 300 -pages 4 -repeats 1 -selectors magicpig")); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "magicpig") || strings.Contains(s, "quest") || strings.Contains(s, "retrieval") {
		t.Error(s)
	}
}

func TestSelectRefusesBadFlags(t *testing.T) {
	for _, args := range []string{"-keys 3", "-keys x", "-keys 9999999999", "-page 0", "-pages 0", "-pages 1", "-repeats 0", "-selectors none", "-queries -1", "-keys 20 -queries 21"} {
		var out, errs bytes.Buffer
		if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields(args)); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}

func TestSelectOfPrefillFindsWhatIsPlanted(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-json -keys 2048 -page 16 -queries 64 -repeats 1")); err != nil {
		t.Fatal(err)
	}
	var got []selectResult
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 9 {
		t.Fatalf("%v: %s", err, &out)
	}
	for _, r := range got {
		if r.Mass > 1.00001 || r.Selector != "minference a-shape" && r.Mass < 0.8 {
			t.Errorf("%+v, want a mass of 0.8 to 1", r)
		}
	}
}
