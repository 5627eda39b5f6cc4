"""The class of every code point that pre-tokenization patterns distinguish, for Unicode 16.0.

`make_unicode_classes.py` generates the table from tiktoken's engine. `\\s` is U+0009 to U+000D, 20,
85, A0, 1680, 2000 to 200A, 2028, 2029, 202F, 205F and 3000.
"""

import base64
import functools
import zlib

import numpy as np
import numpy.typing as npt

N_CODE_POINTS = 0x110000

OTHER = 0
NUMBER = 1  # \p{N}
SPACE = 2  # \s
MARK = 3  # \p{M}
# This class and all following ones are letters.
UPPER = 4  # \p{Lu} \p{Lt}
LOWER = 5  # \p{Ll}
CASELESS = 6  # \p{Lm} \p{Lo}


@functools.cache
def unicode_classes() -> npt.NDArray[np.uint8]:
    """Returns the class (uint8) of each of the 1,114,112 code points; 1 MB, computed once."""
    runs = np.frombuffer(zlib.decompress(base64.b85decode(_RUNS)), dtype="<u4")
    table = np.repeat((runs >> 24).astype(np.uint8), runs & 0xFFFFFF)
    assert len(table) == N_CODE_POINTS
    return table


# Runs of code points of one class, 24 bits of length and 8 of class each, compressed.
_RUNS = (
    "c-rk+O^h8!5uTpznVt9cy?t+gyuaS{#=G8l9sjKDB#QxsMG!|;qF@eKf&&5}kRVnF7cRNwk_+58!409DxpG4Y!j%g?Ab}7FaplMfQPuU;biMYx"
    "UCSY|+4%5OZ+g0`tE;Q3tG}9FQ502ClnX>1(Gk%;{hcAYUKF7gTJ`aM9keI3=6)spb@E(!q5NEPo5#Bq;>DEuhgIsw{~Mv)eky7CgvUQgT6VPi"
    "j&^<aSa0ZPx8ur3n6I3|KktuzwaP|w*ZDl<Q(y;{PcDx?#r~7inQULIUc)1de--<^L6qWMO=F4y(K(5MF_vlEVmeRs9SUI`ytI$X68n3^HHWx~"
    "_XYN-ebzP1<C$V<*fD#oHve(zvYLD@a=*Aq^x)~*e?B|>X|?b26LvnFB3kUpUc?x{e!oxcl-m?n#9q1G!|x|3w{yP@#3DX_Hi^zsJNakv0zIFh"
    "|D2Bn8OL$Qf6K%u_6eT57FsLsfM*`-r9Ji^rx@qABo@Z;U#0)EGB(CT9`_vm?}1OiIPi&MmZd$8>4ADslHYSqxrVkN>*Dre74nnJbtCc5U!wo3"
    "ke%lBFB@J9pfjS2xW*DPa{qDa%Q<C~5xR&nB6hSo^U!sf_NLXN^47T<^fCG`d?tg=Rm*>ShFD&4z2O+y$_{E|<TFa;X!#=F_A^+Mu?v-r`^5d8"
    "HL~=~THG<RRGFR{jQ57>nny|IRyV!m7Zc-7+NWvrckR;*=y7}Gk{qsY`02iQql<v&(&$rV@`ifQ0rs`Re)vfrY~upY$-XtDzeDtIvVB+q9e1qT"
    "WxQuhEU`XbcI-nVx^>0}+I{GnzkiJWr^!)2Y`YWs*Z4KSxZDQ!Q~c_j2XRIF^SsXP^CIS{6W=&?0sEwJr)T!Hgw1*5=XDmh8>|if6xYi8cK|s`"
    "$XkJz`Uv-bzQc|x(ABKHZ}@3EElq!ye5B=H!d|!We#Pv?Qrd5yQ;j3K|GTi^C38kq=}h4F9=_~v;cP<Rc*fKzzWHEcw>SFncu%^k2g(2Re2aUy"
    "XL98Vw3PWOW4qNImwdI%;=66%&z_$v9&OwR&$qJnFMxXJV@Yf<`YWHU_aJW#EaZME{pW=b<0sLEUr#ZFeKW>u+({zeMd)r8?IrwXnE8yhzbH1K"
    "=Rtd3JL7|D!}G>BRR1+{fSKg;{yfI3-`$qIF3w@@0qkfXJR<KcW3w##WyrFQ7)WjI0^*FGXD<ogD9>h!ncm7g#CjT;-(N@kye9XwXvf~HuLr$&"
    "<T*o=4_%fVC%)f>9XA-Oah?C~Vl6$B?;$S>uz@f(x;z8hcjAAoFPof*^-+CJ<car4(s4!lsE<zZ-R2p6a<unM4^PcLG=d9NI3HpRY0%yr^WI`d"
    "T~x=;VQkJ*DKH;CGdPX~i`o0^9qvdK@|}pU1@NwLHg}Do_+D;GTZ!|#yaqZpwE?{^p--Db@cDKVcffh9FPJ>QV#Pkgue_WI6WCi$gIRY-*kSF="
    "T1%6A1bJWRJU2ytJqz3e>ik)vZ^|9U{g9sNym9wK%nv6pG=BnS6FRUR*hB4~`Os5U*D*F`_qRR6kt;jov}&Uj>?+#YrwryiLe8@yxqq9NJ}%vs"
    "+$i$?gA@NV_hYvvd5x<RwxD^fQ@rP1x=ZR^JM#XT$%z%G;^(g?Y$e{YNrw6Wx$$<&4>^X!dkL-CZJT=%KOfPHU$4b{sQB@{qNaSixC%LjPWX=z"
    "FG|VXivMF<Qv9swr+mDA0@!oR_irb?`U|)xmyfAm|H+OKb@S0M{%LxzKW-gY8GT$nVanRGbrl(%%JWQ$KN@S}nT>eYVw`&aviD28FBJQGQSgTt"
    "*KPn`?wdRE0`6}<!~XP6dKMT@iF@o2cgf8Z|Kh!L4tSr<Z>q#6wp9lEn#0{+*V1GdT8;U<!SHUFJGwVDfXZNL`hL~mguvq4xL!gBb;`|J+I1c&"
    "9uwq!r5NX3`oCi^uw4FMydb(?!5MR%DJ6SvJDKl$^t>nYR0GkMo|&!QoWVh=4vf~)`$UO-@s^AGTpVFtTwl0ouv<D){227e@O_`?;*@V<W`UXb"
    "DSA`g?qD7V9K-?Nv2u>ke@-xg;$7J26`FS-I8?+n_*<JFz^30bHh10R5F4l$ZOhsmaH@Fj1MiD@_a1D3|0`~zIAD|X>n;%`T?P78Z=#>>=PvT|"
    "UF69Zfzhas%_83(neTs04V>Rsc&|0y_D<mqpF<~hxC{)cfjukMd&ywCuNwWUU0lvEe2uXypq!JeBuvnqOSLI?knL9my)2`ip!n8p<aEfhVtz74"
    "4tN#!9zTh%79qu~How|57^B9op2(-~oJ)Hjb12=fv+!lqBitCa-iPjVt&3O(|6c%Z%<CrqE$-0sq1<)CP$<XQ7(ZbjEnZe9S}&(NSewgGTlFWw"
    "?3~>v)TIjOD6ahw`q)HlRJ?B)I5gYxhQUcM3FgK*v|GYnB7XXp#2+Glx+T19eKhuC9#_B{d3eP2*G&Da2ESdzXT{x3J+!S8?ijq)8Cec6Hl#Xl"
    "YXg1rt(;33yi?rQL7o9HeO(9BSEk_C&fwR5tmPVbRAyb_F=}z9e%)D%%j;d0!IR-zUTtL7)R|o7uY0DwXRvBp4-KX+YR|bLWZDF_ya3%-lY19)"
    "hAq@_mXcmuoSFN60Nv?Ydy-pdJ%BOtIDXz>?^u`H!`*0@^wsKqN%DwT`$xS&vGgb(>;6}WTm0_Z63+wuszsa$O;+=3vi({$bywAY$aJOk1D5Ny"
    ";rYB-^NgvL>e!8x*Z7O6Uf0G3muU2_tK#RajusGSevg{W$mmAva~Dh=0UG;l;{4i5_8R-JkKO68+db&PcYKRs);1B->Ws%W&PqGB%J%hTC+CFL"
    "aBTji`O5iJ3yb52sXpqzVz2;;YmRKE_^B`I?-2by&i~)i`!{I7H_`7PwBK~ZoOOge?q?&h_t#3Yqjk|0@?7^Jb-Y!I+~-o9i0l4R_H61o(O(ZB"
    "KjLRSF!f!nFQ0+0u`Yh;Vh+>RW<E4_On&6Pi&|JPHRi+gJww#n(Ze;=C`*a_`rj+!uMbEU`-mz3JfC7=ZVx-I&6VQ!Hnw&?hjlT(A5lLBZr{Rs"
    "hFC{0?YVvr;J-YE&dPY!>)pU_mFc^H8aCD#zuLk&e}ee=E@Hy~^uEM@_daq@&O6ufEhK8&mA2dO3rmBU>a${>4RB3+|5ARlhF@tgQ^c2v94_wz"
    "p9mI@wSBGpC(*OGE3RSu8suX<^ncxEzvH~YqSK#4#N!(#p5ZR%mraht{&qLSy^nXGC18Wh_m8GlKR+2uCt?WO)+@NDF#mUo<TEqk3vJG=dB^9S"
    "_@)C+jyh}f?*~ru!1g)$aa*tdhf97DI_@G&f0yc?eE0GD62HQE$p<ywN4Zu=*w4WK^_zdr*WSP#M)AJinE5ucdGj2gpUG#>p!(rD_e0d5!2cwg"
    "kIUmpm?EFbJwN%qN}E4%`xi_34(RWF#0_Hd*AE0I{q$JY_ZQ6j-m=7{>zfj{-lo|7bJ`S&E%o1s>FbL!&o^k?-9Pt>fAL-RKV|V>E9a_("
)
