"""Which images of COCO val2017 the official GVTBench questions are about, so that nobody trains on them unawares."""

import base64
import zlib
from functools import lru_cache

# The 4904 ids of the official coco_oc.json and coco_mci.json (TencentARC/GVT, GVTBench, Apache-2.0): the differences
# between neighbours in a byte each (255: two more bytes follow), compressed.
_IDS = (
    "c-kFUcR-Wp*1yl2y$2x)*&z@@LP#LY$R-S#viIIY5ET$*sSIU^3lX;#_n_`pwAN9rZPng7dfRKKUx(GIy{*<(+vhv>FOu-)8Rz`g$?#f?3JU!g"
    "f>_Q1jM$3c_(+b@uOK^knlnZw*XsL>vjQnaj~`S#_iKDB?|qCYl^AhVH{2xs7%613U@k^0M2f?|v&QBc=$53A0nq_cU03)gEN3D%kE?no3jYh2"
    "g~q1`V)T{Rs%tn-YL^_th<C3u_>M3rPHx4>UYi-}|A&1CMuu<&DFvf{9hT+?U$KS7n#VKMXE)7q#i%;?{Irl7OsWp949})q5BS{q9k#6$quMwk"
    "Go0*lDENHN+th&brkQ3%&@OE_`FixclPZh?yoLs?BiZ+a810_M$f&P+Xpmy0J?@gx<eKig(&QSzDy%i;U}VcuwdpgdtrZwKOc?nOd6<lrZ8W4>"
    "0q=S~hl^KqKjJ;Z=vY$xl!1wnWr~DR)ms;Dkgs~_;0xbj<ib4IWct$NQlWO1%V4(!T*nutk9-~(x{|0~GOi(_f<kFn2lb2bEBVY3<+lUA=ht#>"
    "Fx`StW$pz`IGH<ydjyG?_|nP7lHCdsTMIF2s$NINL_|D^9Nk{QU+PYo1CRG%q{5^|;%9#K98FTW=to^791)}a9c#CwzUql|!YDAza_oX=_}3I~"
    "c-SKNs5=YlXmbozGcdZy-K^9I;YG}^jW+mGyW%Qb=_lLeVKRRw#Rnt8vroYHv%sQe3L7InyIS_Xgr|mwhLMli4!85F!{{$*34xJ3YpEwjhY(u="
    "A3MA0M7}A4J}AeYqdSABmoWNvF-oUWF)B;U#fX#s#Fepjp)W=m7-ipf$4J?yXFua-+cBc~vqfr-_Ra9J$SnVsguFYjeLQh>XyKCvj8^#$ebbJS"
    "Q;n7^y|h8~=H0M5)yuG_WdH&<eL`HMx72L-TU$mc=uO8+dWv_UO8noIj>^NDL>Aot^j}SJE*O0W6~FuqMr3nGC`LJ$AcP(mF?EM;?*DC`Ya_#Q"
    "?OaX|CY-~!U?RtNGqR<o)MH{YVi2Q~L#0D}>hS4AQGA7f)a2!Pe5)k<OrO85bP<Z0{hS8HrwHa@l>Gi`#g}Cz7`>u9`5Gw<myw=X7}Y?L9}dSU"
    "3uC-_+qg^sd748%V5u(86Xe^VEdFr&io@5^>np#7N-_I)AJg#2NjWMBMh!JiiP{Trcyggw9?`yJmbb+}30MmsKz%OeQ5KMOU90-^TK^}%9k2Yf"
    "p)eEf|KeT6C^SpFvdU?8S2iXLsliU})fgR!3c^VA-p5urQ}(k6s`OV`U2jXq67E4B7lk-N&S2CHy>w%&33ZM)0vYl!f(mB~YcV?S68IpzoQH}3"
    "xDR18f{~B9Rn51MTAXh^<i#z*=o+hQM$Pk?b>w2FdYabP@+n51)1NbD0_hmloe#g%3xrY5=7;co_s1pYpUViZ%$2+Q7AY_S70TXzcFqg>)YX8u"
    "+I`L}Uv~-<|E}UlZb3I%cpU5EA!1Xqq3IDu3y<2OwTlv5rl3w9+w@JT7{#^vuIZaYi|BHj$bif5-^jj@bnMpj9L5|<dK^aHi)<M6N6kK^qwPv>"
    "++JtJMBna<lHsE{%;0oa_WJ0`8w#)NgCuz>RICZ3-}2LFo#{der`Qd)&_sl~eO<dah%Ar-FYGq)OfgiS9t8ULc4`%e#^Gl7Kq+X0^)xdF`rm!*"
    "j<<G&NtaeM7?ZQLB5^!|+wZv{GK~KTM$Os*8E~0BVTvMM6|$EDyPTT`wCTZP=SM&YWfNcR?tW>{JK<jLQZC+!(Y_hPy3iBNA8=}w2MbT-0Y|cc"
    "LJ1o{K-XrkZ_yn%S%%S%e888=ozi?pi&1L|cfijL6SJri^FoZ;KBN?D82h(DvD$<Sk~2g%$t(&cUd}U`*(`?F5#v{r>RkcrF}mWp@e5Y+N3l?<"
    "!)`4K$~N~j>9*pRUu0E`-eAXi?G+Fn5$-L#56Kzb-A>WeJE5HKYKs{z^L(r6(D~meA8_Zup+Ex{`^mV88(kEqH?s_eG>kw#Bj;saV{JL0%$@aZ"
    "!x<eWG)-Y%g{!4(=oRO-c39}_$t8RH2M6mP`Sj{1y03;H_iCh(zVJ~RBd$-qc%pkwWX67;${QEHp=rY?1r-UIwK_kOF;$%5ykR_$s!nU^571x~"
    "O9t%HItD?9=mph9GnnYD5hUhZj`I};$7~8K8EMS?ZmB>GUHv_3LMj!j(M@MNOD!k6usE)_VnFD2sE=^#8b_Kj3AIRU6p-KNm+tORtai3Cz2^I_"
    "UoETmonEK$L`Bg3@$SdVlv;yL)KIdSHLt%V-_^e{r*`&vPb!pRe_M*FGsh${HTezD44+C5Tx{zOl(et$4qq>KrTqbdPvUy>Z%rs?ju#nQ!%_E#"
    "xgmv5xjxDAX*%Um5W|?5S4g9Z3nt>nS>QUpW3ryI&khZ8GP`-wuL2}$F8z3aDS$hHrAQ`av19W=8c)x4wdZAiuo|urt`uz6hFo!qs7Z@FVUmp+"
    "F>(bb)_p=3XPYAH7GWYeH>se{3nPS45G8XbIAqhvvY`Y_G&nDxTB0dAnUH0fyDb04+xh#SA6gt?0nl^l_f!?zqwhC^CJtSd#8=o|eVE@w!@6Ub"
    "Q2lh2reio-6m?7O=ZVG)|B<A^SF|m#`j3_|Kw{(O5RAV31xn+WF+e59kJ*Xn<tAAkwNZFBEh?l(Zo`Ce;`ic^`-|?E3=y_0fAwBTwKw|~7mNnc"
    "Dd1?crUcrB9~zfK=2)5vf#O%EB`HpeY5-u{qZYWF8*Wcx3~Xx&1BLR&NXXu5F2ck;c(q<rynV>-VBR{<^KSc6+8QAoB2~SaukWoe_)#&TXBhX8"
    "3yrcgF+`v^mJb+H#}_?AIp^lZ3uuC$8Pl;NX`-}{vD>L+hG;sqKWBUFml*x&v8;}gZ@FZ(=Tb`<`93U+Ks;Nfm?aE_m!o>WlUThskzxJ!mfBGt"
    "mkg2)G%%~aqVK&OUICa;T3XWl%fyO5X-8QQ2$oR&oWTQD)pGaH3e=2%(3q{3E7w5dBZ8EG<pr2%f8eEjCqF+Zmb*s=|9AmgRf%aJ<xyZPJ@-2?"
    "VtIeU&h?yaql`=}|7EdiPWqMB(rp<R)(tUwBf}G0CNNsrD|CPm&!J#aZ1Y8QNF|E;53j?1z+7ts6HF``gA+0x$zV;x^uehBIMJx?6~sGIqJH`!"
    "FXUT{dM!@BT9WxE!4p6-08=H8(*1h_ltf}K#d@D~yBRuFWOW(Ky4IL${{?vVX!2FQ0?w*DCsXizN2D*&X39qxU2S%8b24xJ>>yRNr8w&N9ZRK`"
    "?T%^L54B=FYmu+6HKHD}Ra1R2Mn}PBHep11?b4kW;jT5Ed1u9QZ5cKF58MGz?eJg;_?nEK*alG~#P_WzW@pf1|GM}O6~|mYhLjY@{RiV5zZ`bN"
    "M!yZ12#9h$JKG-R5`#!)Al9V+u+M$CYw^fMj8etM`&9LJXdEK}C$lw^rv_(QUWbW|P5<+%=sE<VPdm)_ptKkukN^r}=E>RB>%OOGpHf392O1fF"
    "5}2s&LK@R%-{QvipxTj#N!;;ciE^P6aUYx)aCy2OBh6DcGnubyu#VbMHkf4431O|!vLh=)gwbq|O;yR2qN8un=KG3?idcH2$>Tk-CNG^I1ILXW"
    "CxtOFF&OILsd{2pJGqHx$FhpE)J#ynsXU8(sX0&@l{vAW8Gw-$&47RBS|RYti?V9%4>LjFwh}bhF_Z^z4Dt^{VV9XE^&nr6Er5`;dkq+p=N^!f"
    "x+_7=dp9mjF+suzI~}(^;TQ9&&ExZZlEH!0nO`q%1TtQX&IzeAt3dPl%?WDyDDM?zF9b?D0G0_`ybYZ(u4&WmI2k90+yT9MsThoMb7KZ_jb4il"
    "uMO$*P@aIb10oJt*4T@Q4Q=Ao3T7QWj{rFHie*mX|2a!#ys#*qBiwZWytmX3_G*+}dO1dk;i!J!cRlBfMt{MG2^PQuzyfOm6egj?X|B@B&oFxL"
    "-ORUl&t|5&+=U`vh>S>KiZu|P+e_QOegMWPvW_ONahqSq6RCZ8jMKKz!qLPbqg5FVU4}8IvZ`ioZN`HYAd-QT1>W8XcT->6FANJHVk!oio#|jT"
    "jpTG#ZAAwmbBfYEhAYXPbd()`2jmbgy$6tY-Cg&Y?h>f$Gi@!%i&N0PeY?Sbtn#-Y0$aiq!YDn%Wy<<VZRtdXBz5VkO%+=tS})5Fo-n<P;@2H~"
    "@R1_Rxu#YTfr?I(!BAlc>$0qYX-V|_J-1#rxUt~2er}PUcCmeKyb2Rxb+cp2hBzvP`<k-lBoBX;=RS<`X-Ayno!h=)lu)GX7>xdl5k%n)k>o4k"
    "msoRHvAXQsMarMkwFl*oY4;98`893F=4Wn~tU`RU+97)?$Y_rT9?~AF_bFAPYaC2$DIi><l16%@X0UO%{^jb2Pj7%pWX1^q_sZyz+;eKLR8F?R"
    "orK6yG#Q+{ve0?!yGmo!0SeU-&(phq_G3BF=r(*ma%HWbIDLoVtm9zWYcey&JSbYb>akhG)6G4H2~zeh7+xwDI{kgUEl77?YFO^_Q04RD7HKXz"
    "N(^*x@|_of3%NT3_Lfy1zQU>0ZadvPbni&IXUG3J)*GCi178!`5+AA`NTPB*zuyy9S3^JVT1`m@79R<gbcvxGSAs1}O>6UL6-H0>N{j#o1)yQ7"
    "Hvw1E+VJ-`dH|C^O%j}n?Odva#5N_nt^2{NvZZ^eOA#xDW6}8+I3gwmk~+hI(0m8<>BG5fNiaw=C?%NK@01T9MBfJxC+VH-5*7(kngtWCR>DjK"
    "zrhRK1?fe9x6RDW(=jRJA!EgyonU3e>lB|9od^r;(Vp>r2>DSkvfYG<q+sc(+%^;$o95cKh~9xwaNyt2xTMGAwSZDV0$9{vzmzUWGrEhLgJuBF"
    "95@9n#{ZO$Ulerm=^N%5yQ31|<4K8$I6*hE#|I4Gua!!rKwKr9xM13KB=l~+14bFIf<5IWb78E|r{1{n1%nOaSQPa##Ehjq|6%7Cyi4oM4AAC`"
    "A2cVN9spay?cY;;U7LDbGeCLyOfQujh6-3#LTm-`n}lg`871x0x&_pH4SCv>DA-7c0XGHoaULf)Kgt%J`!h!6Hx+6Iw^|=286&_kGY9iTrVbDr"
    "wRh5ffC6}5*?PwMm7s7H?ggplu3jAp#=|intMLSjOB-mMAC=7s<uqp8;-p&Z{ftv?C&r}f%5)O|{q1mnVvwk5j#ggq`>wELr|mrKodm&Y7&JOL"
    "4-*gFmif-BcLJ?;=9HgYE1#0j9FkHCQUk9(r=S4<N6<%3zqsq!Jf+42ZF|G>inBPQG=0}NU?qEgL)Z~eNT1c^hyHN5L@OWytLcI}FtI%*XR|>h"
    "$0c2^9SYGoux@Bo-gUK|?Xeu#P8yB;S|;$_B?5-NOH1iQL;)t?_3=kh9c%8FxE6{$7lRA8|JwxQy_?HbTfb>qQA%>C3hiklM>!jZHE1p-+B~+%"
    "Bz{a72KH`TBj~3IPG;pp-2;}ygAQ~Z?#Beg+LqRYH-ZF~SR;FqIxi2}G|Mj;khwHX$Z0`}CBZQF`EEZ!t2XN~f+}><=NHS?N$oFkQeCR6O7r4+"
    "U@@g9HGoQ)>{+qcdG~ewRq#&^qrAzZdxgiZz6soRrw*_Ipgqd7o@j^<v%1<!8;tV8Es<WXz2mHc>hPKm@4N-@!$|A4Gh)6bHtR1Bf6muCjme#!"
    "D(!%x#4jcK0w<=Ht66XsZObO~M$pujea8TYAT!tXJZ_d^eg8_A%qJ9HlG0>|H_&1Z1~xRbfy>hMFi#<0^k=(UzA2Z_{llQH%t)TlJ(zfB7=X)w"
    "(~IV^bM}+tK^feYtm+0KIOc{o;f)_Aa;a++aS<?jx1Q6^k(PV#UnReQ=hA9O<w5}8c59u5#_|xvkVs2x(C8G0{B*XbW|g=scZa3x(^Avcig%&}"
    ";A=ZWCr?E!+;DP3gFN8((S0#;WzqZVSDf&4RON?bVw~=I<UUyvokL|{f;#Qh>d7o0;77Ll)8TaAtN@t+4`2oQL$b{4&+_q_)i47Ti89)f9aKB`"
    "cdTbICjAdWRza52f}8OScThjE#(Wo)l0TV}e$D%T!H^hs$A>!^GDsWBsq%%f2~D494-qLay)Tk$)KaJ?gRnMsTDHq0p$+mUH@j-7UZaKo1Qi7)"
    "cJGpP^?`B>e63bK+5Pv?=lT%euz4x*Szx06Yk`8oUEZ8YPY%kl`uaB=7vAgIjEO2uXann2Kcvh*9YXFJ(4ko}=_tb+yaDu2HlH3jF&TEGO1=66"
    "+qdaripMJU<Lbg?rRm+b?DJ~*?gcXi)Ycwi%zE7<;sXkKKLHz`g>wVfT3eo63P_(lJ2#Wj9#Rw(G*W%dVB$1l;?2I4Tdk4ae&;ev`iMU^1=Xp>"
    "UjHnWq%Ms%kAUi3nSx-`)q>GkK<NHulWL1GIq8{W#$9r=*V^Ubu_`ZLAz4zZ4qZr8uC$H+{47yFWGjkJbkeaQs=JWaP8<SYs2U%{7kaosjX}zb"
    "XF-4LV(78>4CQ83Zfc+_JW`(370|P_txEu%=rmkBD$i!<Eij#XFvy!O^MxIu<v_IB+kh-J2a;4N+ugh%uGssxQ1}2uLh4bI@m=Rlva1UNyp|PK"
    "=KopNpC@#fR9|12tIV3%vy91GDNowpTa1ar|McioD&(`*^FBI2RuwtG=yOzakFNyI8a|kqGeiCh26Bu({d*|U+i>G@kuv}6%!<-J|Bvf8q{V9O"
    "^(4|Dd*8d3b^)+Z4+*l?IexED{SCyFG`0T$fI!5%n;y%P&G#fQ6Ya|L&ii5!m&u|)$aTkPeY7XcWZ`XxCMjWN_6O`uO)l;)`6D%Z$)wks@iq{H"
    "rPv1JKAg&w{p-QonysD{AA?{Uo`s&>ts?IjoFBM1g~`$G0^+I5?`l)k6?Z?0sR~PCin;GoT0}p?(f4s39sS6Q;uF+4>Tsj33&O;dw()UFu`5%s"
    "kw}zg$^D;h%Kd3~?wN-lS7wE>|F8;^$Jf-0YWMmmA@m*WDhwoF0OO(a99>eYNalA0qks8;bS=vEcLUF_%@PF!>Lcx62Ki-A^*_YKc41S=sYU<|"
    "Q7_cb=k)@5H-|cd4d+5Oz6hFHWuE9E9CAVH*k3I3@2NI(jdS!kqyoF>jYJyZxL>xA{?BilKKlA*Ls$Qv{|B`FnpF"
)


@lru_cache(maxsize=1)
def gvtbench_coco_images() -> frozenset[int]:
    """The images that the official object-counting and multi-class identification questions on COCO are about.

    Returns:
        `frozenset[int]`: COCO image ids, all of val2017.
    """
    steps = iter(zlib.decompress(base64.b85decode(_IDS)))
    ids, last = set(), 0
    for step in steps:
        last += step if step < 255 else next(steps) * 256 + next(steps)
        ids.add(last)
    return frozenset(ids)


__all__ = ["gvtbench_coco_images"]
